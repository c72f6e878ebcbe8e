"""How a pipeline calls its denoiser: which arguments are the picture, the time and the text.

Found from three calls that the pipeline makes itself, each with another prompt, another noise or
another number of prompts: docs/decisions/a-call-is-recorded.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rankedit_recipes.diffusion.calls import (
    Call,
    Path,
    count,
    lengths,
    named,
    padded,
    repeated,
    rows_of,
    same,
    shaped_as,
    stacked,
)
from rankedit_recipes.diffusion.encoded import Encoded, Heard
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.recording import Asking, Pipeline, RefusedError

# So many rows tell a batch from any other axis, and carry the digits of `layout`.
ROWS = 7
_PROMPTS = ("a", "a photo of the night by the sea")
# Edges that are tried, the least one first that leaves latents: pipelines cut down and refuse
# what is too small for their autoencoder. Networks with a table of places refuse what is too large.
_EDGES = (48, 64, 128, 256, 512, 1024)
_LEAST = 0


@dataclass(frozen=True, eq=False)
class Calling:
    """What the arguments of a denoiser are, at one size of pictures.

    Attributes:
        call: a call of one prompt and some noise; batched arguments have `ROWS` rows.
        moments: what changes with the time, as it is at the first and at a later step.
        asking: what the pipeline was asked for.
        lists: that have an entry for each prompt.
        picture: where the noisy latents stand.
        texts: what changes with the prompt, by where it stands; whether it has a row for each.
        batched: everything else that has a row for each prompt.
        embeds: which of the texts has a vector for each token.
        mask: which says of each token whether it is read.
        pooled: which has one vector for a prompt.
    """

    call: Call = field(repr=False)
    moments: tuple[Mapping[Path, Any], Mapping[Path, Any]] = field(repr=False)
    asking: Asking
    lists: frozenset[Path]
    picture: Path
    texts: Mapping[Path, bool]
    batched: frozenset[Path]
    embeds: Path
    mask: Path | None
    pooled: Path | None

    @property
    def further(self) -> list[Path]:
        """Texts beside those that have a name."""
        known = (self.embeds, self.mask, self.pooled)
        return [path for path in self.texts if path not in known]

    @property
    def latents(self) -> Tensor:
        """The noisy latents that the pipeline gave, `[ROWS, ...]`."""
        return stacked(self.call.at(self.picture))

    def encoded(self, call: Call, heard: Heard) -> Encoded:
        """The prompts of a call of the pipeline."""
        leaves = call.leaves(self.lists)
        found = {path: leaves[path] for path in self.texts}
        for path, by_row in self.texts.items():
            if by_row and count(found[path]) not in (None, call.rows):
                raise PipelineError(
                    f"diffusion: {named(path)!r} has {count(found[path])} rows for {call.rows} "
                    "prompts, so that it is not known which are theirs."
                )
        self._check_rest(leaves)
        # A list of embeddings has lengths of its own, which its padded form has not.
        listed = [] if isinstance(found[self.embeds], Tensor) else [self.embeds]
        further = {path: (found[path], self.texts[path]) for path in (*self.further, *listed)}
        return Encoded(
            padded(found[self.embeds]),
            lengths(found[self.embeds]) if self.mask is None else found[self.mask],
            None if self.pooled is None else found[self.pooled],
            heard.at(padded(found[self.embeds])),
            further,
        )

    def _check_rest(self, leaves: Mapping[Path, Any]) -> None:
        """Refuse prompts that change what was taken for the same with all prompts."""
        moving = {self.picture, *self.texts, *self.moments[0]}
        for path, own in self.call.leaves(self.lists).items():
            batched = path in self.batched
            if path not in moving and not _alike(own, leaves.get(path), batched):
                raise PipelineError(
                    f"diffusion: these prompts change {named(path)!r} of the denoiser's call, "
                    "which was the same with others: it is not known what it says of them."
                )

    def arguments(
        self, latents: Tensor, time: Mapping[Path, Any], text: Encoded
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a call for latents, times and prompts, all of one number.

        Raises:
            PipelineError: the prompts lack what the denoiser is told of them.
        """
        leaves = self.call.leaves(self.lists)
        filled: dict[Path, Any] = {
            path: repeated(leaves[path], len(latents)) for path in self.batched
        }
        filled[self.picture] = shaped_as(latents, leaves[self.picture])
        filled |= self._text(text)
        for path, told in time.items():
            own = leaves[path]
            # Whole numbers are what the scheduler counts in; the network makes them its own.
            whole = not isinstance(own, Tensor) or not own.is_floating_point()
            filled[path] = told if whole else told.to(own.dtype)
        return self.call.filled(filled)

    def moment(self, late: int, times: int) -> dict[Path, Any]:
        """What the denoiser is told of the time, for a batch, at the first step or a later one."""
        return {
            path: repeated(leaf, times) if count(leaf) == ROWS else leaf
            for path, leaf in self.moments[late].items()
        }

    def _text(self, text: Encoded) -> dict[Path, Any]:
        given = {self.embeds: text.embeds, self.mask: text.mask, self.pooled: text.pooled}
        filled = {path: value for path, value in given.items() if path is not None}
        filled |= {path: value for path, (value, _) in text.further.items()}
        leaves = self.call.leaves(self.lists)
        lacking = [p for p in self.texts if filled.get(p) is None and leaves[p] is not None]
        if lacking:
            raise PipelineError(
                f"diffusion: the denoiser is told {', '.join(map(named, lacking))} of a prompt "
                "beside its embeddings, which is not among what encode_prompt gives; give prompts "
                "through Texts.encode. With concepts: lock='local', which needs no second encoding."
            )
        return {
            path: value.to(leaves[path].dtype)
            if isinstance(value, Tensor) and isinstance(leaves[path], Tensor)
            else value
            for path, value in filled.items()
        }


# By pipeline, for those that share a denoiser may call it differently; with the denoiser.
_known: WeakKeyDictionary[Any, dict[int | None, tuple[nn.Module, Calling]]] = WeakKeyDictionary()


def smallest(pipe: Pipeline, module: nn.Module) -> Calling:
    """How the pipeline calls its denoiser for a picture as small as it makes them.

    Raises:
        PipelineError: the pipeline does not run with prompts alone, or its text does not reach
            the denoiser as tokens.
    """
    sizes = _known.setdefault(pipe, {})
    if _LEAST not in sizes or sizes[_LEAST][0] is not module:
        sizes[_LEAST] = (module, _least(pipe, module))
    return sizes[_LEAST][1]


def _least(pipe: Pipeline, module: nn.Module) -> Calling:
    for edge in _EDGES:
        try:
            known = calling(pipe, module, edge)
        except RefusedError:
            continue
        if known.latents.numel():
            return known
    return calling(pipe, module, None)


def calling(pipe: Pipeline, module: nn.Module, size: int | None) -> Calling:
    """How the pipeline calls its denoiser for pictures of a size; recorded once.

    Raises:
        PipelineError: as `smallest`.
    """
    sizes = _known.setdefault(pipe, {})
    if size not in sizes or sizes[size][0] is not module:
        with torch.no_grad():
            sizes[size] = (module, _recorded(Asking(pipe, module, size)))
    return sizes[size][1]


def _recorded(asking: Asking) -> Calling:
    short, long = _PROMPTS
    # Of two lengths, for pipelines leave masks out that hide nothing; and of another number, so
    # that batches are known by both numbers.
    asked = ([short] * ROWS, 0), ([long, short], 0), ([short] * ROWS, 1)
    calls = [asking.first_calls(prompts, seed=seed)[0] for prompts, seed in asked]
    lists = calls[0].lists(calls[1])
    own, others, noise = (call.leaves(lists) for call in calls)
    picture = [path for path in own if not same(own[path], noise.get(path))]
    name = type(asking.module).__name__
    if len(picture) != 1 or count(own[picture[0]]) != ROWS:
        # Some guide unless the scale is 0, and do so in a batch of twice the size.
        if asking.guidance:
            return _recorded(replace(asking, guidance=0.0))
        raise PipelineError(
            f"diffusion: {len(picture)} arguments of {name} change with the noise "
            f"({', '.join(map(named, picture[:3]))}), where one of {ROWS} latents is expected for "
            f"{ROWS} prompts without guidance; not supported."
        )
    by_row = {path: _by_row(own[path], others.get(path)) for path in own}
    texts = {
        path: by_row[path]
        for path in own
        if path != picture[0] and not _alike(own[path], others.get(path), by_row[path])
    }
    moments = _moments(asking, picture[0], lists)
    batched = {path for path in own if by_row[path] and path not in {*texts, *picture}}
    embeds = _first(others, texts, _is_embeds)
    if embeds is None:
        changing = ", ".join(map(named, texts)) or "none"
        raise PipelineError(
            f"diffusion: {name} is given no embeddings of a prompt's tokens; with the prompt "
            f"change: {changing}."
        )
    tokens = padded(others[embeds]).shape[:2]
    mask = _first(others, texts, lambda x: isinstance(x, Tensor) and x.shape == tokens)
    pooled = _first(others, texts, _is_pooled, but=mask)
    return Calling(
        calls[0],
        moments,
        asking,
        lists,
        picture[0],
        texts,
        frozenset(batched),
        embeds,
        mask,
        pooled,
    )


def _moments(
    asking: Asking, picture: Path, lists: frozenset[Path]
) -> tuple[dict[Path, Any], dict[Path, Any]]:
    # Latents are the same in both steps: what differs is told of the time.
    calls = asking.first_calls([_PROMPTS[0]] * ROWS, steps=2, picture=picture)
    early, late = (call.leaves(lists) for call in calls)
    changing = [path for path in early if not same(early[path], late.get(path))]
    return {path: early[path] for path in changing}, {path: late[path] for path in changing}


def _by_row(one: Any, other: Any) -> bool:  # noqa: ANN401 - leaves
    sizes = (count(one), count(other))
    return sizes in ((ROWS, 2), (None, 2)) if one is None else sizes == (ROWS, 2)


def _alike(one: Any, other: Any, by_row: bool) -> bool:  # noqa: ANN401, FBT001 - leaves
    if by_row:
        first = torch.zeros(1, dtype=torch.long)
        return same(rows_of(one, first), rows_of(other, first))
    return same(one, other)


def _first(
    leaves: Mapping[Path, Any],
    among: Mapping[Path, bool],
    fits: Callable[[Any], bool],
    but: Path | None = None,
) -> Path | None:
    found = (p for p, by_row in among.items() if by_row and p != but and fits(leaves[p]))
    return next(found, None)


def _is_embeds(value: Any) -> bool:  # noqa: ANN401 - a leaf
    if isinstance(value, Tensor):
        return value.ndim == 3 and value.is_floating_point()
    return bool(value) and all(isinstance(row, Tensor) and row.ndim == 2 for row in value)


def _is_pooled(value: Any) -> bool:  # noqa: ANN401 - a leaf
    if not (isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()):
        return False
    # Chroma (diffusers 0.42) is given a mask of text and picture, in the precision of its weights.
    return not bool(((value == 0) | (value == 1)).all())
