"""From the autoencoder's latents to what a denoiser reads, and back from what it gives.

Pipelines pack latents into tokens, scale them by channel, tell times in units of their own and turn
signs. What they do is read off one real call in which known numbers pass through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rankedit_recipes.diffusion.calling import ROWS, Calling
from rankedit_recipes.diffusion.calls import Call, Path, kept, named
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.recording import Reached

# Places are written in digits that bfloat16 holds exactly, a row for each, behind a row of zeros
# and one of ones, so that a scale and a shift can be taken out again.
_BASE = 16
_DIGITS = ROWS - 2
# How far a digit may be from a whole number: bfloat16 rounds a digit of 15 by 0.06.
_OFF = 0.3
_STEPS = 4
# Times that are told in 16 bits are rounded by as much.
_TIME = 1e-2
_EXACT = 1e-5


@dataclass(frozen=True)
class Places:
    """Numbers `y[i] = scale[i]·x[index[i]] + shift[i]` for numbers `x`, shapes without the batch.

    Attributes:
        index: `[n]`, into `x` made flat.
        scale: `[n]`.
        shift: `[n]`.
        shape: of y.
    """

    index: Tensor
    scale: Tensor
    shift: Tensor
    shape: torch.Size

    @staticmethod
    def read(seen: Tensor, what: str) -> Places:
        """What became of `known` numbers `[ROWS, ...]`.

        Raises:
            PipelineError: something else than moving, scaling and shifting each of them.
        """
        rows = seen.detach().double().cpu().flatten(1)
        shift, scale = rows[0], rows[1] - rows[0]
        digits = (rows[2:] - shift) / scale
        whole = digits.round()
        index = (whole * _BASE ** torch.arange(_DIGITS)[:, None]).sum(0)
        clean = bool(((digits - whole).abs() < _OFF).all()) and bool(scale.abs().min() > 0)
        if not clean or bool((whole < 0).any()) or len(index.unique()) != len(index):
            raise PipelineError(f"diffusion: {what}, which is not supported.")
        return Places(index.long(), scale, shift, seen.shape[1:])

    @property
    def plain(self) -> bool:
        """Whether numbers are only moved."""
        return bool(((self.scale - 1).abs() < _EXACT).all()) and not bool(self.shift.any())


def known(shape: torch.Size, like: Tensor) -> Tensor:
    """Numbers `[ROWS, ...]` that tell where each of them stood."""
    places = torch.arange(shape.numel())
    digits = places[None] // _BASE ** torch.arange(_DIGITS)[:, None] % _BASE
    rows = torch.cat([torch.zeros(1, len(places)), torch.ones(1, len(places)), digits])
    return rows.reshape(ROWS, *shape).to(like)


@dataclass(frozen=True)
class Layout:
    """What a pipeline does around its denoiser, for pictures of one size.

    Latents here have the autoencoder's shape, without an axis of frames if there is one frame, and
    the scheduler's scale.

    Attributes:
        latents: latents of the autoencoder from those of the scheduler.
        picture: what the denoiser reads from latents of the scheduler.
        output: what the scheduler is given from what the denoiser gives.
        time: where the time stands.
        told: shape of the time without the batch.
        times: `(a, b)`: the denoiser is told `a + b·t` for a time `t` of the scheduler.
        framed: whether the autoencoder takes films.
    """

    latents: Places
    picture: Places
    output: Places
    time: Path
    told: torch.Size
    times: tuple[float, float]

    @property
    def framed(self) -> bool:
        """Whether the autoencoder takes films, `[channels, frames, height, width]`."""
        return len(self.latents.shape) == 4

    @property
    def shape(self) -> torch.Size:
        """Of latents: channels, height and width."""
        full = self.latents.shape
        return torch.Size((full[0], *full[2:])) if self.framed else full

    def scaled(self, found: Tensor) -> Tensor:
        """Latents of the autoencoder `[batch, ...]` in the scheduler's scale, float32."""
        places = self.latents
        flat = found.float().flatten(1)
        if flat.shape[1] != len(places.index):
            raise PipelineError(
                f"diffusion: the autoencoder gives latents {list(found.shape[1:])} for a picture "
                f"where its pipeline decodes {list(places.shape)}; not supported."
            )
        even = (flat - places.shift.to(flat)) / places.scale.to(flat)
        return even.reshape(-1, *self.shape)

    def read(self, latents: Tensor) -> Tensor:
        """What the denoiser reads of latents `[batch, ...]`."""
        flat = latents.flatten(1)
        back = torch.empty_like(self.latents.index)
        back[self.latents.index] = torch.arange(len(back))
        index = back[self.picture.index].to(flat.device)
        return flat[:, index].reshape(-1, *self.picture.shape)

    def given(self, output: Tensor) -> Tensor:
        """What the scheduler is given, shaped as latents, of what the denoiser gave."""
        places, index = self.output, self.latents.index
        scale = places.scale[index].to(output)
        return (output.flatten(1)[:, places.index[index].to(output.device)] * scale).reshape(
            -1, *self.shape
        )

    def timed(self, times: Tensor) -> dict[Path, Tensor]:
        """The argument of the denoiser for times `[batch]` of the scheduler."""
        shift, scale = self.times
        told = times if (shift, scale) == (0.0, 1.0) else shift + scale * times
        shaped = told.reshape(-1, *[1] * len(self.told)).expand(-1, *self.told)
        return {self.time: shaped}


class _Passing:
    """Lets known numbers pass through a pipeline, and keeps what comes of them."""

    def __init__(self, calling: Calling, given: torch.Size) -> None:
        self._picture, self._given = calling.picture, given
        self.calls: list[Call] = []
        self.outputs: list[Tensor] = []
        self.times: list[float] = []
        self.latents: Tensor | None = None
        self.shape = torch.Size()

    def called(self, call: Call) -> Tensor:
        self.calls.append(Call(kept(call.args), kept(call.kwargs), call.rows))
        picture = call.at(self._picture)
        if not isinstance(picture, Tensor):
            raise PipelineError(
                "diffusion: the denoiser is given latents as a list; learning is not supported."
            )
        return known(self._given, picture)

    def stepped(self, output: Tensor, time: Any, sample: Tensor) -> Tensor:  # noqa: ANN401
        self.outputs.append(output)
        self.times.append(float(time))
        self.shape = sample.shape[1:]
        return known(self.shape, sample)

    def decoded(self, latents: Tensor) -> NoReturn:
        self.latents = latents
        raise Reached


_layouts: WeakKeyDictionary[Calling, Layout] = WeakKeyDictionary()


def layout(calling: Calling, given: torch.Size) -> Layout:
    """What a pipeline does around its denoiser.

    Args:
        calling: how it calls that.
        given: shape of what the denoiser gives, without the batch.

    Raises:
        PipelineError: it does more than moving, scaling and shifting numbers.
    """
    if calling not in _layouts:
        _layouts[calling] = _passed(calling, given)
    return _layouts[calling]


def _passed(calling: Calling, given: torch.Size) -> Layout:
    passing = _Passing(calling, given)
    calling.asking.play(["a"] * ROWS, passing, steps=_STEPS)
    name = type(calling.asking.pipe).__name__
    if passing.latents is None or len(passing.calls) < 3:
        raise PipelineError(
            f"diffusion: {name} was not seen to decode {ROWS} pictures together after its steps; "
            "learning on it is not supported."
        )
    latents = Places.read(passing.latents, f"{name} mixes latents before it decodes them")
    picture = Places.read(
        passing.calls[1].at(calling.picture), f"{name} gives its denoiser more than noisy latents"
    )
    output = Places.read(passing.outputs[0], f"{name} mixes what its denoiser gives")
    whole = len(latents.index) == passing.shape.numel() == len(picture.index)
    if not (whole and picture.plain) or bool(output.shift.any()):
        raise PipelineError(
            f"diffusion: {name} changes latents before its denoiser in ways that are not supported."
        )
    time = _time(calling, name)
    told = [call.at(time) for call in passing.calls]
    return Layout(
        latents, picture, output, time, told[0].shape[1:],
        _affine(passing.times, [float(leaf.reshape(-1)[0]) for leaf in told], calling),
    )  # fmt: skip


def _time(calling: Calling, name: str) -> Path:
    found = list(calling.moments[0])
    if len(found) != 1 or not isinstance(calling.moments[0][found[0]], Tensor):
        raise PipelineError(
            f"diffusion: the arguments {', '.join(map(named, found))} of the denoiser of {name} "
            "change with the time, where one tensor is expected; learning on it is not supported."
        )
    return found[0]


def _affine(times: list[float], told: list[float], calling: Calling) -> tuple[float, float]:
    """`(a, b)` with `told = a + b·time`."""
    pipe = calling.asking.pipe
    steps = float(pipe.scheduler.config.get("num_train_timesteps", 1000))
    told = told[: len(times)]
    slope = (told[-1] - told[0]) / (times[-1] - times[0])
    fitted = (told[0] - slope * times[0], slope)
    # What pipelines do, exactly, where it explains what was seen; else the line through the ends.
    usual = [(0.0, 1.0), (0.0, 1 / steps), (1.0, -1 / steps), (steps, -1.0)]
    for (shift, scale), bound in ((pair, _TIME) for pair in (*usual, fitted)):
        off = max(abs(shift + scale * t - f) for t, f in zip(times, told, strict=False))
        if off <= bound * max(map(abs, told)):
            return shift, scale
    raise PipelineError(
        f"diffusion: {type(pipe).__name__} tells its denoiser the times {told} for {times} of its "
        "scheduler, which is no line; learning on it is not supported."
    )
