"""Which projections make keys and values from the text, found by running the model.

No names are known: a projection counts if what it reads depends on the prompt alone
(`rankedit.probe`), and if it sits beside another one of which the same holds, both reading the same
tensor. Of such a pair the one in which the attention's output is affine makes the values, for
attention is a weighted mean of values; the other one makes the keys, through a softmax.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.diffusion.denoising import Denoiser
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.text import Texts

# Curvature of the attention's output along a large change of a projection's output, relative to
# the change: rounding for values (1e-3 in half precision), of the order of 1 for keys.
_AFFINE = 0.05
_CONTRAST = 10.0
_CHANGE = 100.0


@dataclass(frozen=True)
class Targets:
    """The projections of a denoiser that read the text.

    Attributes:
        keys: names of the key projections, in the model's order.
        values: names of the value projections, in the same order.
        finest: key projections of the layers that look at the picture in most places, its finest
            level; all of them where there is one level only.
        width: width of what they read.
        direct: whether they read the text encoder's output itself; if not (PixArt, Sana), a
            projection of it that they share.
        entrances: in their place, where text and picture attend jointly, the projections through
            which every token enters; see `entrance`.
        first: row in which a prompt's first token stands in what they read.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    finest: tuple[str, ...]
    width: int
    direct: bool
    entrances: tuple[str, ...] = ()
    first: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, keys before values."""
        return self.entrances or (*self.keys, *self.values)

    def learned(self, lock: str) -> tuple[str, ...]:
        """The projections whose outputs a lock leaves to be learned; the others stay."""
        if lock == "coarse":
            pairs = zip(self.keys, self.values, strict=True)
            return (*self.finest, *(value for key, value in pairs if key in self.finest))
        return (*(self.keys if lock == "trained" else ()), *self.values)

    def modules(self, denoiser: nn.Module) -> dict[str, nn.Module]:
        """All of them by name.

        Args:
            denoiser: without the wrapper of a compiler.
        """
        known = dict(denoiser.named_modules())
        return {name: known[name] for name in self.names}


def probed(texts: Texts, denoiser: Denoiser) -> Targets:
    """Key and value projections of a denoiser, found by running it a few times.

    Raises:
        PipelineError: text and picture attend jointly, or nothing reads the text by itself.
    """
    denoiser.check_one()
    # Two of everything: what changes with the text alone is static for a prompt.
    encoded = [texts.encode([prompt]) for prompt in ("a", "a photo of the night by the sea")]
    (picture, early), (other, late) = (denoiser.probe_inputs(i, i) for i in (0, 1))
    inputs: dict[str, Any] = {"latents": picture, "time": early, "text": encoded[0]}
    vary = {"picture": {"latents": other}, "time": {"time": late}, "text": {"text": encoded[1]}}
    readings = rk.probe(denoiser.plain, inputs, vary, call=denoiser.forward)
    static = [name for name, reading in readings.items() if reading.changes == {"text"}]
    # Static projections are more than keys and values (caption projections, modulations): only
    # pairs that feed one attention count.
    calls = _Calls(denoiser.plain, static)
    with calls:
        denoiser.forward(**inputs)
    pairs = calls.all_pairs()
    if not pairs:
        raise _nothing(denoiser, readings, inputs, calls)
    inputs_read = [calls.read[key] for key, _ in pairs]
    if any(not torch.equal(inputs_read[0], read) for read in inputs_read[1:]):
        raise PipelineError(
            f"diffusion: the cross-attention layers of {denoiser.name} read different encodings "
            "of the text, so that one key direction cannot serve all; not supported."
        )
    keys, values = zip(*pairs, strict=True)
    read, given = inputs_read[0], encoded[0].embeds
    if read.shape[-2] != given.shape[-2]:
        raise PipelineError(
            f"diffusion: {denoiser.name} is not supported: its keys read {read.shape[-2]} vectors "
            f"of a prompt whose encoding has {given.shape[-2]} tokens, such as the encodings of "
            "two text encoders one behind the other. A word then has several encodings in one "
            "prompt, which one key direction cannot stand for."
        )
    direct = read.shape == given.shape and torch.equal(read, given.to(read))
    places = [calls.places(key) for key in keys]
    finest = tuple(key for key, n in zip(keys, places, strict=True) if n == max(places))
    return Targets(keys, values, finest, read.shape[-1], direct)


class _Calls:
    """One forward pass, recorded: what projections read, and how their parents were called."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.read: dict[str, Tensor] = {}
        self._modules = dict(model.named_modules())
        self._names = names
        self._parents: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for name in self._names:
            parent = name.rpartition(".")[0]
            hooks = ((name, self._child(name)), (parent, self._parent(parent)))
            for owner, hook in hooks:
                module = self._modules[owner]
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _child(self, name: str) -> Any:  # noqa: ANN401 - a hook
        def hook(_: nn.Module, args: tuple[Tensor, ...], __: dict[str, Any]) -> None:
            self.read[name] = args[0].detach().clone()

        return hook

    def _parent(self, name: str) -> Any:  # noqa: ANN401 - a hook
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._parents[name] = (args, kwargs)

        return hook

    def places(self, name: str) -> int:
        """How many places of the picture the attention of a projection looks from."""
        args, kwargs = self._parents[name.rpartition(".")[0]]
        picture = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        # Attention is handed a map with its channels second, or a sequence with them last.
        channels = picture.shape[1 if picture.ndim == 4 else -1]
        return picture[0].numel() // channels

    def all_pairs(self) -> list[tuple[str, str]]:
        """Key and value projections that were called, of every attention that has one of each."""
        return [pair for siblings in self.families() for pair in self.pairs(siblings)]

    def families(self) -> list[list[str]]:
        """Projections by parent, where several of one parent read the same tensor."""
        groups = self._by_parent().values()
        return [group for group in groups if len(group) > 1 and self._same(group)]

    def _by_parent(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in self.read:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
        return groups

    def _same(self, names: list[str]) -> bool:
        first = self.read[names[0]]
        return all(torch.equal(first, self.read[name]) for name in names[1:])

    def fused(self, pictures: Iterable[str]) -> list[str]:
        """Projections that attention reads the text through alone, and through a softmax.

        Args:
            pictures: projections that read the picture; attention has one.
        """
        asking = {name.rpartition(".")[0] for name in pictures} & self._parents.keys()
        alone = [names[0] for names in self._by_parent().values() if len(names) == 1]
        # Not of the model itself: everything behind its own layers bends what it gives.
        inside = [name for name in alone if "." in name and name.rpartition(".")[0] in asking]
        return [name for name in inside if (self._curvature(name) or 0.0) > _AFFINE]

    def pairs(self, siblings: list[str]) -> list[tuple[str, str]]:
        """The key and the value projection of one attention, if there is one of each."""
        bends = {name: self._curvature(name) for name in siblings}
        curved = sorted((bend, name) for name, bend in bends.items() if bend is not None)
        # Three or more that bend the output are no keys and values of one attention; fused or
        # shared ones are not split here.
        if len(curved) != 2:
            return []
        (straight, value), (bent, key) = curved
        told_apart = straight < _AFFINE and bent > _CONTRAST * straight
        return [(key, value)] if told_apart else []

    def _curvature(self, name: str) -> float | None:
        """How far the parent's output is from affine in a projection's output; None if constant."""
        module = self._modules[name]
        parent = self._modules[name.rpartition(".")[0]]
        args, kwargs = self._parents[name.rpartition(".")[0]]
        # Second difference along one random direction, as long as softmax needs to leave its linear
        # part: zero where the output is affine.
        noise = torch.Generator().manual_seed(0)
        outputs = []
        for sign in (1.0, -1.0, 0.0):

            def change(_: nn.Module, __: object, output: Tensor, sign: float = sign) -> Tensor:
                spread = _CHANGE * output.float().std()
                # Seeded anew for each sign: all three outputs lie along one direction.
                draw = torch.randn(output.shape, generator=noise.manual_seed(0)).to(output.device)
                return output + (sign * spread * draw).to(output.dtype)

            handle = module.register_forward_hook(change)
            try:
                result = parent(*args, **kwargs)
            finally:
                handle.remove()
            # In double precision, for the second difference is of numbers that nearly cancel.
            outputs.append((result[0] if isinstance(result, tuple) else result).double())
        plus, minus, middle = outputs
        span = float((plus - minus).norm())
        return float((plus + minus - 2 * middle).norm()) / span if span else None


def _nothing(
    denoiser: Denoiser,
    readings: Mapping[str, rk.Reading],
    inputs: Mapping[str, Any],
    calls: _Calls,
) -> PipelineError:
    """Why no keys and values are made of the text alone."""
    timed = [n for n, reading in readings.items() if {"text"} < reading.changes <= {"text", "time"}]
    others = _Calls(denoiser.plain, timed)
    with others:
        denoiser.forward(**inputs)
    pairs = others.all_pairs()
    # In the first block of a joint model text rows have not met the picture yet.
    pattern = {_pattern(key) for key, _ in pairs}
    joint = [n for n, r in readings.items() if "picture" in r.changes and _pattern(n) in pattern]
    if joint:
        return denoiser.joint_attention(f"text rows read the picture, such as {joint[0]!r}")
    if pairs:
        return PipelineError(
            f"diffusion: {denoiser.name} is not supported: its keys read the time step beside the "
            f"text ({pairs[0][0]!r}). A prompt then has other keys in every step, so that there is "
            "no fixed encoding of the category to lock a key to."
        )
    fused = calls.fused(n for n, reading in readings.items() if "picture" in reading.changes)
    if fused:
        return PipelineError(
            f"diffusion: {denoiser.name} is not supported: one projection ({fused[0]!r}) makes "
            "keys and values together, so that values cannot be learned while keys are locked. If "
            "they were fused (fuse_qkv_projections), unfuse them first."
        )
    both = [n for n, reading in readings.items() if {"text", "picture"} <= reading.changes]
    if both:
        return denoiser.joint_attention(
            f"text rows read the picture; {both[-1]!r} reads both, and no keys and values are made "
            "of the text alone"
        )
    return PipelineError(
        f"diffusion: no projection of {denoiser.name} reads the text by itself. If keys and "
        "values were fused (fuse_qkv_projections), unfuse them first."
    )


def _pattern(name: str) -> str:
    """A name without the numbers of blocks."""
    return ".".join("#" if part.isdigit() else part for part in name.split("."))
