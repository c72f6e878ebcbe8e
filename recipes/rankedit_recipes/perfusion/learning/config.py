"""Everything that decides what is learned, as one frozen value that a TOML file can hold."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from rankedit_recipes.diffusion.statistics import RIDGE
from rankedit_recipes.diffusion.text import Tokens
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.locks import Lock
from rankedit_recipes.perfusion.prompts import TEMPLATES

Reduction = Literal["weighted", "mean", "squared"]
Rates = Literal["relative", "absolute"]
Precision = Literal["float32", "bfloat16"]
_CHOICES = {"lock": Lock, "tokens": Tokens, "reduction": Reduction, "rates": Rates}
_CHOICES["precision"] = Precision
# Not patience, min_snr and size, for which 0 means something.
_COUNTS = ("steps", "vectors", "batch", "accumulate", "validate_every", "checkpoint_every")


@dataclass(frozen=True)
class Config:
    """How a concept is learned.

    Attributes:
        steps: optimiser steps. The paper trains for up to 400.
        batch: photos in a step (16 in the paper), drawn with repetition.
        accumulate: the batch is worked on in this many parts.
        lock: what stays as it is: `"local"`: keys are those of the category; `"global"`: likewise,
            and the whole prompt's follow the category when the concept is applied; `"coarse"`: keys
            and values of the coarse levels, which decide what is where, are those of the word that
            the new one stands for, and the finest level learns both, and the concept has a dead
            zone; `"trained"`: nothing, keys are learned too, which overfits (the paper's ablation).
        adjective: empty: the word stands for the category ("a <bean>"). Else it stands before it
            ("a <bean> cat"), begins as this word ("new") and is locked to it.
        value_rate: learning rate of values.
        embedding_rate: learning rate of the word's embedding.
        decay: part of the steps, at the end, over which both rates fall to zero, which averages
            the noise of small batches out; 0 keeps them (the paper).
        rates: `"relative"`: to the spread of what is learned, that of the token embeddings and of
            each layer's values, because an Adam step is as long as its rate; `"absolute"`: as they
            are (the paper: 0.03 and 0.006).
        bias: of the gate while training.
        temperature: of the gate while training.
        key_momentum: `i* ← p i* + (1 − p) mean(e)`, once for each optimiser step.
        key_gradient: whether gradients also flow through i*; sources disagree about it.
        reduction: of the masked loss, `Σ m·err/Σ m` ("weighted"), `mean(m·err)` or `mean(m²·err)`;
            the paper does not say.
        min_snr: cut of the min-SNR weights; 0 for none.
        flip: mirror photos at random; wrong for things that have a left and a right.
        templates: prompts to learn in, with `{}` for the word.
        contexts: prompts without photos, in which the word stands behind another thing, such as
            `CONTEXTS`: the i* that is kept is the mean encoding of the learned word over templates
            and these. The encoding of an adjective depends on what stands before it: its gate
            would stay shut at a second place. Empty for the average of the training (the paper).
        tokens: which positions the statistics count; see `second_moment`.
        ridge: of the metric, in units of its mean eigenvalue.
        size: edge of the training pictures in pixels; 0 for what the model was made for.
        precision: of the forward pass; the gate is always computed in float32.
        checkpointing: recompute activations in the backward pass, to save memory.
        seed: of everything that is drawn.
        validate_every: steps between validations, if there is a scorer.
        patience: validations without a better score after which to stop; 0 for never.
        checkpoint_every: steps between checkpoints, if there is a run folder.
        vectors: how many the word has, each with its own embedding, key and values. They begin as
            the last tokens of the word that they stand for; those beyond as its last one, with a
            little noise. The paper has one.
    """

    steps: int = 200
    batch: int = 8
    accumulate: int = 1
    lock: Lock = "local"
    adjective: str = ""
    value_rate: float = 0.05
    embedding_rate: float = 0.05
    decay: float = 0.5
    rates: Rates = "relative"
    # The paper's, for training; `locks` has those for pictures.
    bias: float = 0.75
    temperature: float = 0.1
    key_momentum: float = 0.99
    key_gradient: bool = False
    reduction: Reduction = "weighted"
    min_snr: float = 0.0
    flip: bool = True
    templates: tuple[str, ...] = TEMPLATES
    contexts: tuple[str, ...] = ()
    tokens: Tokens = "all"
    ridge: float = RIDGE
    size: int = 0
    precision: Precision = "float32"
    checkpointing: bool = False
    seed: int = 0
    validate_every: int = 25
    patience: int = 0
    checkpoint_every: int = 25
    vectors: int = 1

    def __post_init__(self) -> None:
        for given in fields(self):
            _typed(given.name, getattr(self, given.name), given.default)
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise PerfusionError(
                    f"Config: {name} must be one of {', '.join(get_args(kind))}, got "
                    f"{getattr(self, name)!r}."
                )
        self._check_numbers()
        self._check_vectors()
        wordless = [context for context in self.contexts if "{}" not in context]
        if wordless:
            raise PerfusionError(
                f"Config: contexts must be prompts with {{}} where the word goes, got "
                f"{wordless[0]!r}."
            )
        # Refused here and not when the concept is saved, which is after the training.
        barred = [template for template in self.templates if "|" in template]
        if barred:
            raise PerfusionError(
                "Config: a template must not have '|', which separates templates in concept files; "
                f"got {barred[0]!r}."
            )

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise PerfusionError(
                    f"Config: {name} must be at least 1, got {getattr(self, name)}."
                )
        for name in ("value_rate", "embedding_rate", "temperature"):
            # Not `<= 0`, which a nan would pass.
            if not getattr(self, name) > 0:
                raise PerfusionError(f"Config: {name} must be positive, got {getattr(self, name)}.")
        # Parts of one size: the mean of their means is that of the batch.
        if self.batch % self.accumulate:
            raise PerfusionError(
                f"Config: batch must be a multiple of accumulate, got {self.batch} and "
                f"{self.accumulate}."
            )
        for name in ("key_momentum", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise PerfusionError(
                    f"Config: {name} must be in [0, 1], got {getattr(self, name)}."
                )

    def _check_vectors(self) -> None:
        if self.key_gradient and self.vectors > 1:
            raise PerfusionError(
                f"Config: vectors must be 1 with key_gradient, got {self.vectors}; leave one of "
                "them out."
            )

    def rate_at(self, step: int) -> float:
        """What the rates are multiplied by in a step: 1, and a straight fall to zero at the end."""
        # With (steps − step) the last step still has a rate: at 0 it would be a step for nothing.
        fall = self.decay * self.steps
        return min(1.0, (self.steps - step) / fall) if fall else 1.0

    def deciding(self) -> dict[str, str]:
        """What decides the result, as texts by name: all settings but how often it is kept."""
        return {name: _toml(value) for name, value in self._deciding().items()}

    def _deciding(self) -> dict[str, Any]:
        # Checkpoints may come more or less often without changing a single step. One vector is
        # not named: trainings and files of before there were several stay what they are.
        left = {"checkpoint_every"} | ({"vectors"} if self.vectors == 1 else set())
        return {name: value for name, value in asdict(self).items() if name not in left}

    def digest(self) -> str:
        """A hash of what decides the result."""
        # Validations, too, for they decide which state is kept.
        text = json.dumps(self._deciding(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        """The configuration as a TOML file that `from_toml` reads."""
        return "".join(f"{name} = {_toml(value)}\n" for name, value in asdict(self).items())

    @classmethod
    def from_toml(cls, path: str | PathLike[str], base: Config | None = None) -> Config:
        """Read a TOML file; what it leaves out is as in `base`, or has its default.

        Raises:
            PerfusionError: no such file, not TOML, or an unknown or ill-typed setting.
        """
        file = Path(path)
        try:
            return (base or cls()).changed(tomllib.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise PerfusionError(f"Config.from_toml: '{file}' cannot be read: {error}.") from error
        except tomllib.TOMLDecodeError as error:
            raise PerfusionError(f"Config.from_toml: '{file}' is no TOML file: {error}.") from error

    def changed(self, settings: dict[str, Any]) -> Config:
        """The configuration with other settings, checked.

        Raises:
            PerfusionError: an unknown setting, or one of another type.
        """
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        values: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in known:
                raise PerfusionError(
                    f"Config: unknown setting {name!r}; known are {', '.join(known)}."
                )
            values[name] = _typed(name, value, known[name])
        return replace(self, **values)


def _typed(name: str, value: object, like: object) -> object:
    if isinstance(like, tuple) and isinstance(value, (list, tuple)):
        return tuple(str(item) for item in value)
    # TOML has 1 where 1.0 is meant; the other way round nothing is converted: 1.5 is no count.
    if isinstance(like, float) and type(value) is int:
        return float(value)
    # By exact type, for to `isinstance` True is a number.
    if type(value) is not type(like):
        raise PerfusionError(
            f"Config: {name} must be of type {type(like).__name__}, got {value!r}."
        )
    return value


def _toml(value: object) -> str:
    # JSON writes texts, numbers, truth values and lists as TOML does.
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
