"""Find what a projection reads by changing one argument of the model at a time.

No table of models: a few small forward passes tell which projections read the text alone, the
picture alone or both, whatever the model calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rankedit.errors import ProjectionError
from rankedit.models.reaching import not_called
from rankedit.models.reading import Observed, quiet
from rankedit.models.selecting import Pattern, select
from rankedit.shapes import check_kind

Inputs = dict[str, list[Tensor]]

# An input has changed if it differs by more than this many times what it differs by when nothing
# was changed: models with atomic operations on a GPU do not give the same bits twice.
_NOISE_FACTOR = 10.0


@dataclass(frozen=True)
class Span:
    """Rows of a sequence, one after another, that depend on the same.

    Attributes:
        start: first row.
        stop: one past the last row.
        changes: the arguments that they depend on.
    """

    start: int
    stop: int
    changes: frozenset[str]


@dataclass(frozen=True)
class Reading:
    """What a projection reads.

    Attributes:
        changes: the arguments that its input depends on; empty if it depends on none of those that
            were varied.
        shapes: shape of its input in each call, without the last axis (in); empty if the projection
            was never called.
        spans: for each call its rows `[batch, tokens, in]` in order, in runs that depend on the
            same in some entry of the batch; empty for a call that reads no such sequence.
    """

    changes: frozenset[str]
    shapes: tuple[tuple[int, ...], ...]
    spans: tuple[tuple[Span, ...], ...] = ()

    @property
    def called(self) -> bool:
        """Whether the projection was called at all; if not, edits on it would do nothing."""
        return bool(self.shapes)

    def role(self, lengths: Mapping[str, int]) -> str:
        """A name for what is read, given how many tokens each argument has.

        Args:
            lengths: number of tokens by argument, all different, and no one the sum of others.

        Returns:
            * `"not called"`: fused into another layer, or used without being called
            * `"constant"`: depends on nothing that was varied
            * `"text-static"`: depends on the argument `text` alone, whatever its shape
            * `"text-stream"`: depends on others too, but has the tokens of `text`
            * `"shared"`: has the tokens of several, and some of one alone: see `spans`
            * `"joint"`: has the tokens of several arguments in one sequence
            * `"mixed"`: depends on several, and has the tokens of none (pooled vectors)
        """
        if not self.called:
            return "not called"
        if len(self.changes) <= 1:
            return f"{next(iter(self.changes))}-static" if self.changes else "constant"
        tokens = {shape[-1] for shape in self.shapes if len(shape) > 1}
        owners = sorted(name for name, length in lengths.items() if length in tokens)
        if owners:
            return f"{owners[0]}-stream"
        if sum(lengths.values()) not in tokens:
            return "mixed"
        alone = any(len(span.changes) == 1 for call in self.spans for span in call)
        return "shared" if alone else "joint"


def probe(
    model: nn.Module,
    inputs: Mapping[str, object],
    vary: Mapping[str, Mapping[str, object]],
    *,
    which: Pattern | Iterable[str] = "*",
    call: Callable[..., object] | None = None,
) -> dict[str, Reading]:
    """Which projections' inputs change when one argument of a forward pass changes.

    Runs `call(**inputs)` twice (the second time to see what changes by itself) and once for each
    entry of `vary`, with small inputs of the caller's choice, in evaluation mode without gradients.

    Args:
        model: the model.
        inputs: keyword arguments of a small forward pass. Give arguments that are sequences
            different lengths, or `Reading.role` cannot tell them apart.
        vary: by a name of the caller's choice, the keyword arguments that change together, with
            their other values: `{"text": {"encoder_hidden_states": other}}`.
        which: the projections to look at; what `select` takes. All by default.
        call: what to run; the model if None.

    Returns:
        A `Reading` for each projection, in the model's order.

    Raises:
        ProjectionError: nothing matches, `vary` is empty or names an argument that is not in
            `inputs`, no projection was called, or one reads NaN.
        ShapeError: an argument of another kind.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import rankedit as rk
        >>> class Cross(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.to_q, self.to_k = nn.Linear(4, 4), nn.Linear(4, 4)
        ...
        ...     def forward(self, image, text):
        ...         return self.to_q(image) @ self.to_k(text).mT
        >>> small = {"image": torch.randn(1, 5, 4), "text": torch.randn(1, 3, 4)}
        >>> other = {name: {name: x + 1} for name, x in small.items()}
        >>> found = rk.probe(Cross(), small, other)
        >>> {name: reading.role({"image": 5, "text": 3}) for name, reading in found.items()}
        {'to_q': 'image-static', 'to_k': 'text-static'}
    """
    _check(model, inputs, vary, call)
    _check_varied(inputs, vary)
    targets = select(model, which)
    run = call or model
    with quiet(model):
        base = _inputs(targets, run, inputs)
        if not base:
            remedy = "let `call` run this model"
            raise ProjectionError(not_called("probe", targets, "in the forward pass", remedy))
        again = _inputs(targets, run, inputs)
        varied = {
            label: _inputs(targets, run, {**inputs, **other}) for label, other in vary.items()
        }
    # Two runs of the same inputs: on a CPU they agree to the bit, and any difference counts.
    noise = {name: _distance(base.get(name, []), again.get(name, [])) for name in targets}
    return {
        name: _reading(
            base.get(name, []),
            {label: found.get(name, []) for label, found in varied.items()},
            _NOISE_FACTOR * noise[name],
        )
        for name in targets
    }


def _reading(base: list[Tensor], varied: Mapping[str, list[Tensor]], noise: float) -> Reading:
    changes = {label for label, found in varied.items() if _distance(base, found) > noise}
    shapes = tuple(tuple(x.shape[:-1]) for x in base)
    return Reading(frozenset(changes), shapes, tuple(_spans(base, varied, noise)))


def _spans(
    base: list[Tensor], varied: Mapping[str, list[Tensor]], noise: float
) -> Iterator[tuple[Span, ...]]:
    for index, x in enumerate(base):
        if x.ndim < 3:
            yield ()
            continue
        moved = {
            label: _moved(x, found[index : index + 1], noise) for label, found in varied.items()
        }
        kinds = [frozenset(n for n in moved if moved[n][row]) for row in range(x.shape[-2])]
        starts = [row for row, kind in enumerate(kinds) if not row or kind != kinds[row - 1]]
        ends = [*starts[1:], len(kinds)]
        yield tuple(Span(a, b, kinds[a]) for a, b in zip(starts, ends, strict=True))


def _moved(x: Tensor, found: list[Tensor], noise: float) -> list[bool]:
    """Which rows differ; all of them where there is no call of that shape to compare with."""
    if not found or found[0].shape != x.shape:
        return [True] * x.shape[-2]
    apart = (x - found[0]).abs().flatten(0, -3).amax((0, 2))
    scale = max(float(x.abs().max()), float(found[0].abs().max())) or 1.0
    moved: list[bool] = (apart / scale > noise).tolist()
    return moved


def _check(model: object, inputs: object, vary: Any, call: object) -> None:  # noqa: ANN401
    check_kind("probe", "model", model, nn.Module)
    check_kind("probe", "inputs", inputs, Mapping)
    check_kind("probe", "vary", vary, Mapping)
    check_kind("probe", "call", call, Callable, optional=True)
    for label, other in vary.items():
        check_kind("probe", f"vary[{label!r}]", other, Mapping)


def _check_varied(inputs: Mapping[str, object], vary: Mapping[str, Mapping[str, object]]) -> None:
    if not vary:
        raise ProjectionError(
            "probe: vary must name at least one argument to change, such as "
            '{"text": {"encoder_hidden_states": other}}, got none.'
        )
    for label, other in vary.items():
        unknown = [name for name in other if name not in inputs]
        if unknown or not other:
            raise ProjectionError(
                f"probe: vary[{label!r}] must change arguments that are in inputs "
                f"({', '.join(map(str, inputs))}), got {', '.join(map(str, unknown)) or 'nothing'}."
            )


def _inputs(
    targets: Mapping[str, nn.Module], run: Callable[..., object], inputs: Mapping[str, object]
) -> Inputs:
    """Copies of what each projection reads, because models write into their tensors."""
    seen: Inputs = {}

    def read(name: str, x: Tensor) -> None:
        if not bool(x.isfinite().all()):
            raise ProjectionError(
                f"probe: projection {name!r} reads NaN or infinity, which cannot be compared; "
                "choose other inputs, or another dtype."
            )
        seen.setdefault(name, []).append(x.clone())

    with Observed("probe", targets, read):
        run(**inputs)
    return seen


def _distance(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest relative difference between corresponding tensors; infinite for other shapes."""
    # Another number of calls, or other shapes, are a change too: of how often or how long.
    if [x.shape for x in first] != [x.shape for x in second]:
        return float("inf")
    return max((_difference(a, b) for a, b in zip(first, second, strict=True)), default=0.0)


def _difference(a: Tensor, b: Tensor) -> float:
    if a.equal(b):
        return 0.0
    scale = max(float(a.abs().max()), float(b.abs().max()))
    return float((a - b).abs().max()) / scale
