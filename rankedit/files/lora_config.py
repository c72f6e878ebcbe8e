"""The configuration beside a LoRA's tensors: what to write, and how strong each layer is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rankedit.errors import EditFileError
from rankedit.files.entries import checked_number
from rankedit.files.header import checked_object, parse_json
from rankedit.files.lora_patterns import NamePatterns

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
# Under this key diffusers keeps the configuration of each component inside the file.
METADATA_KEY = "lora_adapter_metadata"
# No sound adapter amplifies its factors this much; files with an alpha of 1e9 are in circulation.
_LARGEST_SCALE = 1e4
# What PEFT 0.21.2 lets a configuration say, and what of it leaves ΔW = scale · B A true whatever it
# says: where the layers were found, how A and B began, what happens while they are trained. The
# argument, and the test that asks PEFT for its fields, are in docs/decisions/fields-by-name.md.
_WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "lora_dropout", "fan_in_fan_out", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config",
}  # fmt: skip
_READ = {
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora",
    "init_lora_weights", "bias",
}  # fmt: skip
# These leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) subtract from it.
_HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
_NONE: Mapping[str, int] = {}
_NO_PATTERNS = NamePatterns({}, "")
_UNSET: tuple[object, ...] = (None, False, "", [], {})


def adapter_config(
    ranks: Mapping[str, int], extra: Mapping[str, object], parameters: Mapping[str, int] = _NONE
) -> str:
    """The text of `adapter_config.json` for layers of these ranks, all with `alpha = r`.

    Parameters that hold many experts have their ranks beside those of layers.

    Where ranks differ, every layer gets its own entry, longest names first: the reader matches the
    end of names and takes the first that fits.

    Raises:
        EditFileError: with the extra fields a layer would be read with another strength.
    """
    layers, ranks = ranks, {**ranks, **parameters}
    mixed = len(set(ranks.values())) > 1
    longest_first = sorted(ranks, key=lambda name: (-len(name), name))
    pattern = {name: ranks[name] for name in longest_first} if mixed else {}
    rank = max(ranks.values())
    document = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(layers),
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "fan_in_fan_out": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        **extra,
    }
    try:
        text = json.dumps(document, indent=2) + "\n"
        strength = Strength.from_config(checked_object(parse_json(text), CONFIG_NAME))
        scales = {name: strength.scale(name, r, None) for name, r in ranks.items()}
    except (TypeError, ValueError, RecursionError) as error:  # EditFileError is a ValueError
        raise EditFileError(f"to_lora: config: {str(error).rstrip('.')}.") from error
    wrong = next((name for name, scale in scales.items() if scale != 1), None)
    if wrong is not None:
        raise EditFileError(
            f"to_lora: config would have {wrong!r} read at {scales[wrong]:g} times its strength; "
            "leave out what is about ranks and alphas, and multiply the edit instead."
        )
    if parameters:  # after the check: `from_lora` knows no parameters
        text = json.dumps({**document, "target_parameters": sorted(parameters)}, indent=2) + "\n"
    return text


@dataclass(frozen=True)
class Strength:
    """How a configuration scales the layers that it is about.

    Attributes:
        alpha: numerator of the scale; None if it equals the rank, for a scale of 1.
        rank: what the configuration says of the tensors; None if it says nothing.
        alphas: alphas of layers that a pattern matches, instead of `alpha`.
        ranks: the same of ranks.
        root: divide by the square root of the rank instead of the rank.
    """

    alpha: float | None = None
    rank: float | None = None
    alphas: NamePatterns = _NO_PATTERNS
    ranks: NamePatterns = _NO_PATTERNS
    root: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Strength:
        """Read an adapter configuration.

        Raises:
            EditFileError: it makes more of A and B than `scale · B A`, or may do so; or its numbers
                are not numbers.
        """
        _check_plain(config)
        # PEFT's own default, where a configuration does not say it.
        alpha = checked_number(config.get("lora_alpha", 8), "lora_alpha")
        rank = config.get("r")
        return cls(
            alpha,
            None if rank is None else checked_number(rank, "r"),
            _patterns(config, "alpha_pattern"),
            _patterns(config, "rank_pattern"),
            bool(config.get("use_rslora")),
        )

    def scale(self, name: str, rank: int, own_alpha: float | None) -> float:
        """The factor of `up @ down` for a layer whose tensors have this rank.

        Args:
            name: the layer's name in the model that the configuration is about.
            rank: that of its tensors.
            own_alpha: the alpha that stands beside them.

        Raises:
            EditFileError: alpha is not positive or absurdly large, there are two of them, or the
                tensors are not those that the configuration is about.
        """
        stated = _stated(self.ranks, name, self.rank)
        if stated is not None and stated != rank:
            raise EditFileError(
                f"layer {name!r:.120} has rank {rank}, its configuration says {stated:g}: they are "
                "of two different adapters, or writing was interrupted; write them again"
            )
        alpha = _stated(self.alphas, name, self.alpha)
        if None not in (own_alpha, alpha) and own_alpha != alpha:
            raise EditFileError(
                f"layer {name!r:.120} has alpha {own_alpha:g} beside its tensors and {alpha:g} in "
                "the configuration; remove the one that is wrong"
            )
        alpha = alpha if own_alpha is None else own_alpha
        if alpha is None:
            return 1.0
        scale = alpha / (math.sqrt(rank) if self.root else rank)
        if not 0 < scale <= _LARGEST_SCALE:
            raise EditFileError(
                f"alpha of {name!r:.120} must give a scale in (0, {_LARGEST_SCALE:g}], got alpha "
                f"{alpha:g} for rank {rank}"
            )
        return scale

    def cost(self) -> int:
        """How much work the patterns are for each name."""
        return self.alphas.cost + self.ranks.cost


def _stated(patterns: NamePatterns, name: str, otherwise: float | None) -> float | None:
    # Patterns of a text encoder are about today's names, files keep the old step in them.
    found = (patterns.first(n) for n in (name, name.removeprefix("text_model.")))
    return next((value for value in found if value is not None), otherwise)


def _patterns(config: Mapping[str, object], field: str) -> NamePatterns:
    values = checked_object(config.get(field) or {}, field)
    return NamePatterns(
        {key: checked_number(value, f"{field} of {key!r:.80}") for key, value in values.items()},
        field,
    )


def _check_plain(config: Mapping[str, object]) -> None:
    """Refuse whatever is set and not known to leave `ΔW = scale · B A` true."""
    for field, value in config.items():
        plain = field in _WITHOUT_EFFECT or field in _READ or value in _UNSET
        if not plain or (field == "peft_type" and value != "LORA"):
            raise _not_plain(field, value, "load it with PEFT; merge_and_unload() puts it into W")
    init = config.get("init_lora_weights", True)
    # By identity, too: 1 == True.
    if not any(
        init is known or (isinstance(init, str) and init == known) for known in _HARMLESS_INITS
    ):
        raise _not_plain(
            "init_lora_weights",
            init,
            "it is relative to a base that was changed when it was made:"
            " load it with PEFT and call save_pretrained(folder, "
            "path_initial_model_for_weight_conversion=...), which writes it relative to the model",
        )
    if config.get("bias", "none") not in ("none", *_UNSET):
        raise _not_plain("bias", config["bias"], "merge the biases into the model with PEFT")


def _not_plain(field: str, value: object, remedy: str) -> EditFileError:
    return EditFileError(
        f"only plain LoRA adapters are low-rank edits, and {field!r:.80} is {value!r:.80}; {remedy}"
    )


def strengths_in_metadata(metadata: Mapping[str, str]) -> dict[str, Strength]:
    """By component the configurations that diffusers keeps in a file's metadata.

    A pipeline writes the fields of each component after its name; a model that saves itself
    (`save_lora_adapter`) writes them bare, which is the component "" here.

    Raises:
        EditFileError: they are not what diffusers writes.
    """
    if METADATA_KEY not in metadata:
        return {}
    document = checked_object(parse_json(metadata[METADATA_KEY]), METADATA_KEY)
    configs: dict[str, dict[str, object]] = {}
    for key, value in document.items():
        component, _, field = key.rpartition(".")
        configs.setdefault(component, {})[field] = value
    if "" in configs and len(configs) > 1:
        raise EditFileError(f"{METADATA_KEY} has fields with and without a component before them")
    return {component: Strength.from_config(config) for component, config in configs.items()}
