"""The lock of the stream: the denoiser is given prompts in the categories' words.

Prompts keep the triggers through `encode_prompt`, so that it is known which rows are a concept's;
they are encoded a second time in the categories' words, and exchanged where the denoiser is called.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.diffusion.calling import smallest
from rankedit_recipes.diffusion.calls import Call, Path, named
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.recording import is_unanswered
from rankedit_recipes.diffusion.standing import standing
from rankedit_recipes.diffusion.vectors import in_place_of
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.joint.places import rows_told

# Rows of results that are kept: more than any batch has, with negative prompts and pooled vectors.
_REMEMBERED = 128
# Encodings of one prompt in batches of different sizes differ by rounding; those of two prompts by
# far more.
_SAME = 1e-3
_PROMPTS = ("prompt", "negative_prompt")


@dataclass(frozen=True)
class _Known:
    """One row of what `encode_prompt` gave: as it came, in words of the categories, and places."""

    own: Tensor
    locked: Tensor
    rows: Tensor | None


Told = Callable[[Tensor, Tensor], None]


class Stream:
    """Exchanges what the denoiser is given of prompts, until it is removed.

    Args:
        parts: of the pipeline, with the triggers in it.
        categories: by trigger the category.
        told: is given, before each call of the denoiser, `rows [batch, tokens, concepts]` with 1
            where a trigger stands, and the time `[batch]` or `[1]`, 0 to 1.
    """

    def __init__(self, parts: Parts, categories: Mapping[str, str], told: Told) -> None:
        self._parts, self._categories, self._told = parts, dict(categories), told
        self._known: list[_Known] = []
        self._last: tuple[tuple[Any, ...], dict[Path, Any], Tensor] | None = None
        self._warned = False
        # Before anything is exchanged, for it runs the pipeline.
        self._module, self._moment = parts.denoiser.module, parts.denoiser.moments()
        calling = smallest(parts.pipe, self._module)
        self._embeds, self._pooled = calling.embeds, calling.pooled
        strange = [p for p in calling.further if calling.texts[p]]
        if strange:
            raise PerfusionError(
                f"perfusion: {parts.denoiser.name} is not supported yet: of a prompt it is given "
                f"{', '.join(map(named, strange))} beside its embeddings, which would have to be "
                "exchanged with them."
            )
        self._own_encode = "encode_prompt" in vars(parts.pipe)
        self._encode = parts.pipe.encode_prompt
        self._signature = inspect.signature(self._encode)
        self._class = type(self._module)
        parts.pipe.encode_prompt = functools.wraps(self._encode)(
            functools.partial(self._encode_both)
        )
        # Of the object itself: a compiled module hands what is set on it to the one inside.
        object.__setattr__(self._module, "__class__", _exchanging(self._class, self))

    def remove(self) -> None:
        """Restore the pipeline."""
        object.__setattr__(self._module, "__class__", self._class)
        if self._own_encode:
            self._parts.pipe.encode_prompt = self._encode
        else:
            self._parts.pipe.__dict__.pop("encode_prompt", None)
        self._known, self._last = [], None

    # ---------------------------------------------------------------- prompts

    def _encode_both(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as encode_prompt
        with self._parts.text.heard() as heard:
            result = self._encode(*args, **kwargs)
        given = dict(self._signature.bind(*args, **kwargs).arguments)
        extra = given.pop("kwargs", {})
        changed = {n: self._in_categories(p) for n, p in given.items() if _is_prompt(n, p)}
        said = any(changed[name] != given[name] for name in changed)
        other = self._encode(**{**given, **changed}, **extra) if said else result
        rows = self._rows(result[0], heard) if said and heard else None
        written = _is_prompt("prompt", given.get("prompt"))
        new = []
        for index, (own, locked) in enumerate(zip(result, other, strict=True)):
            if not isinstance(own, Tensor) or not own.is_floating_point() or own.ndim < 2:
                continue
            self._check_alike(own, locked)
            # The first are the prompts'; negative ones are locked, and have nothing of a concept.
            places = [None] * len(own) if rows is None or index else rows
            # Embeddings that were given are known if they came from here, and else to nobody.
            if written or index:
                triples = zip(own.detach(), locked.detach(), places, strict=True)
                new += [_Known(*triple) for triple in triples]
        if not said:
            new = [known for known in new if self._find(known.own) is None]
        # The newest first: those are what the next steps of sampling look for.
        self._known = [*new, *self._known][: max(_REMEMBERED, len(new))]
        self._last = None
        return result

    def _rows(self, embeds: Tensor, heard: Any) -> Tensor:  # noqa: ANN401 - tokens that were heard
        texts, count = self._parts.text, embeds.shape[1]
        tables = [standing(texts, heard, embeds, word) for word in self._categories]
        return torch.stack([rows_told(table, count, embeds.device) for table in tables], -1)

    def _check_alike(self, own: Tensor, locked: Tensor) -> None:
        if own.shape != locked.shape:
            raise PerfusionError(
                f"perfusion: prompts with {' or '.join(self._categories)} have {list(own.shape)} "
                f"encodings, and {list(locked.shape)} in words of the categories; rename the "
                "concept so that its category has one token in all tokenizers."
            )

    def _in_categories(self, prompt: Any) -> Any:  # noqa: ANN401 - a prompt or prompts
        if not isinstance(prompt, str):
            return [self._in_categories(one) for one in prompt]
        # Words that are in already stay: a concept's may be a part of theirs.
        known = {w: w for w in self._parts.text.tokenizer.get_added_vocab()}
        return in_place_of(known | self._categories, prompt)

    # ---------------------------------------------------------------- calls

    def exchanged(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with the stream locked; tells what the edits need."""
        paths = [self._embeds] + ([] if self._pooled is None else [self._pooled])
        given = tuple(call.at(path) for path in paths)
        last = self._last
        # By identity: all steps of a picture have the same tensors.
        if last is None or any(a is not b for a, b in zip(last[0], given, strict=True)):
            found = [[self._find(row) for row in leaf] for leaf in given]
            filled = {
                path: torch.stack([
                    row if known is None else known.locked.to(row)
                    for row, known in zip(leaf, knowns, strict=True)
                ])
                for path, leaf, knowns in zip(paths, given, found, strict=True)
            }  # fmt: skip
            self._last = last = (given, filled, self._told_rows(given[0], found[0]))
        self._told(last[2], self._moment(call))
        return call.filled(last[1])

    def _told_rows(self, embeds: Tensor, found: Sequence[_Known | None]) -> Tensor:
        rows = torch.zeros(*embeds.shape[:2], len(self._categories), device=embeds.device)
        for index, known in enumerate(found):
            if known is not None and known.rows is not None:
                rows[index] = known.rows.to(rows)
        if not all(found):
            self._warn()
        return rows

    def _find(self, row: Tensor) -> _Known | None:
        # By contents: pipelines join, repeat and cast encodings on their way to the denoiser.
        for known in self._known:
            if known.own.shape == row.shape:
                own = known.own.to(row.device).float()
                if (row.detach().float() - own).norm() <= _SAME * own.norm():
                    return known
        return None

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"perfusion: a prompt's encoding was not given by this pipeline's encode_prompt "
                f"since {' and '.join(self._categories)} came in, such as after prompt weighting: "
                "its picture has nothing of a concept. Give prompts as texts.",
                rk.RankeditWarning,
                stacklevel=4,
            )


def _is_prompt(name: str, value: object) -> bool:
    texts = isinstance(value, str) or (
        isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
    )
    return texts and name.rstrip("_234") in _PROMPTS


def _exchanging(base: type[nn.Module], stream: Stream) -> type[nn.Module]:
    # The class, for a hook would be compiled into a module that is compiled.
    class Exchanging(base):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            # A recipe's own calls say what they mean themselves.
            if is_unanswered() or self is not stream._module:
                return super().__call__(*args, **kwargs)
            new, named_ = stream.exchanged(Call(args, kwargs, 0))
            return super().__call__(*new, **named_)

        def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401 - as object's own
            # A copy is made of the denoiser's own class, which can be found by name.
            own = type(self)
            object.__setattr__(self, "__class__", base)
            try:
                return self.__reduce_ex__(protocol)
            finally:
                object.__setattr__(self, "__class__", own)

    Exchanging.__name__, Exchanging.__qualname__ = base.__name__, base.__qualname__
    return Exchanging
