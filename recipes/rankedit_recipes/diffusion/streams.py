"""Where text enters a denoiser, which rows are its, and which projections make keys and values.

Of any denoiser, whether text and picture meet in cross-attention or attend as one sequence. With
all values muted no row sees another, so that rows which depend on the text and not on the picture
are the text's, in every block: docs/decisions/rows-of-the-text.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.diffusion.attentions import Attentions, Pair, Part, muted
from rankedit_recipes.diffusion.calls import Path, named
from rankedit_recipes.diffusion.denoising import Denoiser
from rankedit_recipes.diffusion.encoded import Encoded
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.text import Texts

_PROMPT = "a photo of the night by the sea"
# Rows beside those that a token stands in may move a little, through averages over all tokens.
_LEAST = 0.05


@dataclass(frozen=True)
class Reader:
    """Keys and values that one attention makes of the text.

    Attributes:
        key: the projection that makes keys, as `rankedit.attach` takes it.
        value: the one that makes values.
        rows: first and one past the last row of the text in what they read.
        length: rows that they read.
        changes: what those rows depend on: of `text`, `pooled`, `time` and `picture`.
        entrances: by argument of the denoiser the rows in which its first token stands, from which
            on its other tokens follow; the embeddings have the empty path where they are a tensor.
    """

    key: str
    value: str
    rows: tuple[int, int]
    length: int
    changes: frozenset[str]
    entrances: Mapping[Path, tuple[int, ...]]

    @property
    def shared(self) -> bool:
        """Whether the picture's rows go through the same projections."""
        return self.rows != (0, self.length)


def readers(texts: Texts, denoiser: Denoiser) -> tuple[Reader, ...]:
    """All attention of a denoiser that reads the text, in the order in which it is called.

    Runs the denoiser some twenty times on its smallest picture, and each attention some more.

    Raises:
        PipelineError: nothing reads the text, tokens do not keep their order, or an attention
            makes keys and values in ways that are not told apart.
    """
    denoiser.check_one()
    encoded = texts.encode([_PROMPT])
    (picture, early), (other, late) = (denoiser.probe_inputs(i, i) for i in (0, 1))
    inputs: dict[str, Any] = {"latents": picture, "time": early, "text": encoded}
    vary = {
        "picture": {"latents": other},
        "time": {"time": late},
        "text": {"text": with_tokens(encoded, shaken)},
    }
    if encoded.pooled is not None:
        vary["pooled"] = {"text": replace(encoded, pooled=shaken(encoded.pooled))}
    model = denoiser.plain
    with torch.no_grad():
        pairs = Attentions(model, lambda: denoiser.forward(**inputs)).pairs()
        if not pairs:
            raise _nothing(denoiser)
        names = list(dict.fromkeys(part.name for pair in pairs for part in pair))

        def probed() -> dict[str, rk.Reading]:
            return rk.probe(model, inputs, vary, which=names, call=denoiser.forward)

        with muted(model, [value for _, value in pairs]):
            alone = probed()
            text = [pair for pair in pairs if _own(alone[pair[0].name])]
            entered = _entrances(denoiser, text, inputs)
        if not text:
            raise _nothing(denoiser)
        together = probed()
    return tuple(
        _reader(pair, alone[pair[0].name], together[pair[0].name], entered[pair[0].name])
        for pair in text
    )


def _own(alone: rk.Reading) -> list[rk.Span]:
    """Rows of the text, where no row sees another."""
    spans = alone.spans[0]
    return [s for s in spans if "text" in s.changes and "picture" not in s.changes]


def _nothing(denoiser: Denoiser) -> PipelineError:
    return PipelineError(
        f"diffusion: no attention of {denoiser.name} was found to make keys and values of the "
        "text by projections of its own. If they were fused (fuse_qkv_projections), unfuse them "
        "first; else this denoiser is not supported."
    )


def _reader(
    pair: Pair, alone: rk.Reading, together: rk.Reading, entered: Mapping[Path, tuple[int, ...]]
) -> Reader:
    own = _own(alone)
    start, stop = own[0].start, own[-1].stop
    seen = [s.changes for s in together.spans[0] if s.start < stop and s.stop > start]
    changes = frozenset[str]().union(*seen)
    key, value = pair
    return Reader(
        key.place, value.place, (start, stop), alone.shapes[0][-1], changes,
        {path: rows for path, rows in entered.items() if rows},
    )  # fmt: skip


# ------------------------------------------------------------------------------ where tokens go


def _entrances(
    denoiser: Denoiser, pairs: list[Pair], inputs: Mapping[str, Any]
) -> dict[str, dict[Path, tuple[int, ...]]]:
    """For each key projection the rows of the first token of each argument that reaches it."""
    encoded: Encoded = inputs["text"]
    keys = [key for key, _ in pairs]
    base = _read(denoiser, keys, inputs)
    found: dict[str, dict[Path, tuple[int, ...]]] = {key.name: {} for key in keys}
    for path, leaf in token_leaves(encoded).items():
        ends = end_tokens(encoded, rows_in(leaf).shape[-2])
        seen = [
            _read(denoiser, keys, {**inputs, "text": with_tokens(encoded, one_token(at), path)})
            for at in ends
        ]
        for key in keys:
            first, last = (moved_rows(base[key.name], end[key.name]) for end in seen)
            if not first and not last:
                continue
            if [row + ends[1] - ends[0] for row in first] != last:
                raise PipelineError(
                    f"diffusion: tokens {ends[0]} and {ends[1]} of {named(path) or 'the prompt'!r} "
                    f"stand in rows {first} and {last} of what {key.name!r} of {denoiser.name} "
                    "reads, so that it is not known which row is which token's; not supported."
                )
            found[key.name][path] = tuple(row - ends[0] for row in first)
    return found


def end_tokens(encoded: Encoded, count: int) -> tuple[int, int]:
    """First and last token that is read; what stands in others' place may be something else."""
    masks = [encoded.mask, *(leaf for leaf, _ in encoded.further.values())]
    fitting = [m for m in masks if isinstance(m, Tensor) and m.shape[1:] == (count,)]
    for mask in fitting:
        read = mask[0].nonzero().flatten().tolist()
        if read:
            return read[0], read[-1]
    return 0, count - 1


def _read(denoiser: Denoiser, parts: list[Part], inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    modules = dict(denoiser.plain.named_modules())
    found: dict[str, Tensor] = {}
    handles = []
    for part in parts:

        def note(_: object, args: tuple[Tensor, ...], name: str = part.name) -> None:
            found.setdefault(name, args[0].detach().clone())

        handles.append(modules[part.name].register_forward_pre_hook(note))
    try:
        denoiser.forward(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def moved_rows(one: Tensor, other: Tensor) -> list[int]:
    """The rows that changed, but for those that changed far less than others."""
    apart = (one.float() - other.float()).flatten(0, -3).square().sum((0, 2))
    most = float(apart.max())
    return (apart > _LEAST * most).nonzero().flatten().tolist() if most else []


def one_token(at: int) -> Callable[[Tensor], Tensor]:
    """What changes one token's vector."""

    def change(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[..., at, :] = shaken(x)[..., at, :]
        return changed

    return change


def shaken(x: Tensor) -> Tensor:
    """Other numbers of the same size, the same ones in each call."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return x + (x.float().std() * noise.to(x.device)).to(x.dtype)


def rows_in(leaf: Any) -> Tensor:  # noqa: ANN401 - a leaf
    """The vectors of the first prompt, or of all."""
    return leaf if isinstance(leaf, Tensor) else leaf[0]


def token_leaves(encoded: Encoded) -> dict[Path, Any]:
    """What the denoiser is given with a vector for each token, by where it stands.

    The embeddings have the empty path where they are a tensor.
    """
    listed = [path for path, (leaf, _) in encoded.further.items() if not isinstance(leaf, Tensor)]
    lists = {path: encoded.further[path][0] for path in listed if _is_tokens(encoded, path)}
    tensors = {
        path: leaf
        for path, (leaf, _) in encoded.further.items()
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim >= 3
    }
    return {**({} if lists else {(): encoded.embeds}), **lists, **tensors}


def _is_tokens(encoded: Encoded, path: Path) -> bool:
    rows = encoded.further[path][0]
    return bool(rows) and all(isinstance(r, Tensor) and r.ndim == 2 for r in rows)


def with_tokens(
    encoded: Encoded, change: Callable[[Tensor], Tensor], only: Path | None = None
) -> Encoded:
    """Prompts with other numbers in their tokens' vectors, of the same shapes."""
    changed: dict[Path, Any] = {}
    for path, leaf in token_leaves(encoded).items():
        if only in (None, path):
            changed[path] = (
                change(leaf) if isinstance(leaf, Tensor) else type(leaf)(map(change, leaf))
            )
    further = {p: (changed.get(p, leaf), by_row) for p, (leaf, by_row) in encoded.further.items()}
    return replace(encoded, embeds=changed.get((), encoded.embeds), further=further)
