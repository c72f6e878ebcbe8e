"""Collecting statistics: against the bare forward, and against one pass for each layer."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankedit as rk

WIDTH, LAYERS, BATCHES, TOKENS = 256, 8, 4, 512


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def _setting() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(*(_Block() for _ in range(LAYERS))).eval()
    return model, [torch.randn(1, TOKENS, WIDTH) for _ in range(BATCHES)]


def _bare(model: nn.Module, batches: list[Tensor]) -> None:
    for batch in batches:
        model(batch)


def _collected(model: nn.Module, batches: list[Tensor], pattern: str) -> dict[str, Any]:
    return rk.collect(model, pattern, batches, progress=False)


def _checked(model: nn.Module, batches: list[Tensor]) -> None:
    """Statistics of the last layer against inputs caught by hand."""
    caught: list[Tensor] = []
    handle = model[-1].down.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    _bare(model, batches)
    handle.remove()
    rows = torch.cat(caught).reshape(-1, 4 * WIDTH).double()
    moment = _collected(model, batches, "*.down")[f"{LAYERS - 1}.down"]
    torch.testing.assert_close(moment.matrix, rows.T @ rows / len(rows))


def test_overhead_over_the_bare_forward(versus: Any) -> None:
    model, batches = _setting()
    with torch.no_grad():
        _checked(model, batches)
    versus(
        lambda: _collected(model, batches, "*.up"),
        lambda: _bare(model, batches),
        what=f"collect {LAYERS} inputs of width {WIDTH}, {BATCHES * TOKENS} tokens",
        peer_name="forward without collecting",
        note="moments in float64",
    )


def test_wide_overhead_over_the_bare_forward(versus: Any) -> None:
    model, batches = _setting()
    versus(
        lambda: _collected(model, batches, "*.down"),
        lambda: _bare(model, batches),
        what=f"collect {LAYERS} inputs of width {4 * WIDTH}, {BATCHES * TOKENS} tokens",
        peer_name="forward without collecting",
        pairs=5,
        note="moments in float64",
    )


def test_one_pass_against_a_pass_for_each_layer(versus: Any) -> None:
    model, batches = _setting()

    def layer_by_layer() -> dict[str, Any]:
        found = {}
        for index in range(LAYERS):
            moment = rk.SecondMoment(WIDTH)

            def update(_: nn.Module, args: tuple[Tensor], moment: Any = moment) -> None:
                moment.update(args[0])

            handle = model[index].up.register_forward_pre_hook(update)
            _bare(model, batches)
            handle.remove()
            found[f"{index}.up"] = moment
        return found

    with torch.no_grad():
        ours, theirs = _collected(model, batches, "*.up"), layer_by_layer()
    for name, moment in ours.items():
        torch.testing.assert_close(moment.matrix, theirs[name].matrix)
    versus(
        lambda: _collected(model, batches, "*.up"),
        layer_by_layer,
        what=f"statistics of {LAYERS} layers of width {WIDTH}",
        peer_name="one full pass for each layer (as in ROME's and MEMIT's code)",
        pairs=7,
        note="the peer accumulates with the same code",
    )


class _Reached(Exception):  # noqa: N818 - not an error
    """The textbook's forward pass ends behind the layer that is read."""


def _textbook(model: nn.Module, layer: nn.Module, batches: list[Tensor]) -> Tensor:
    """One layer's `xᵀx` in a few lines: forward as far as it, a product in float32."""
    total = torch.zeros(4 * WIDTH, 4 * WIDTH)

    def read(_: nn.Module, args: tuple[Tensor]) -> None:
        rows = args[0].reshape(-1, 4 * WIDTH)
        total.add_(rows.T @ rows)
        raise _Reached

    handle = layer.register_forward_pre_hook(read)
    for batch in batches:
        with contextlib.suppress(_Reached):
            model(batch)
    handle.remove()
    return total / (len(batches) * TOKENS)


@pytest.mark.parametrize("products", ["float32", "float64"])
def test_one_layer_against_a_textbook_loop(versus: Any, products: Any) -> None:
    model, few = _setting()
    batches = few * 4  # the first one runs to its end, to learn what is called
    name = f"{LAYERS // 2}.down"

    def ours() -> Tensor:
        found = rk.collect(model, name, batches, progress=False, products=products)
        return found[name].matrix

    def theirs() -> Tensor:
        return _textbook(model, model[LAYERS // 2].down, batches)

    with torch.no_grad():
        torch.testing.assert_close(ours().float(), theirs(), rtol=1e-4, atol=1e-4)
    versus(
        ours,
        theirs,
        what=f"statistics of one layer, width {4 * WIDTH}, {len(batches) * TOKENS} tokens",
        peer_name="textbook loop: forward to that layer, full product in float32",
        pairs=5,
        note=f"products in {products}",
    )
