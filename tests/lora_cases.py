"""Edits for layers of real models, and whether a reader of LoRA files added exactly them."""

import torch
from torch import Tensor, nn

from rankedit.edits import LowRank


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit_for(layer: nn.Module, rank: int, seed: int = 0) -> LowRank:
    with torch.no_grad():
        if isinstance(layer, nn.Conv2d):
            out_features, in_features = layer.out_channels, layer.in_channels
        elif isinstance(layer, nn.Linear):
            out_features, in_features = layer.out_features, layer.in_features
        else:
            in_features, out_features = layer.weight.shape
    return LowRank(normal(out_features, rank, seed=seed), normal(rank, in_features, seed=seed + 1))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_changed_by(model, before, edits, *, transposed=False, tolerance=0.0) -> None:
    """Edited weights are W + ΔW to the last bit (or the tolerance), all others are untouched."""
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, old in before.items():
        edit = edits.get(name.removesuffix(".weight"))
        if edit is None:
            assert torch.equal(after[name], old), name
            continue
        delta = edit.delta().T if transposed else edit.delta()
        expected = old + delta.reshape(old.shape)
        torch.testing.assert_close(after[name], expected, rtol=0, atol=tolerance, msg=name)


def assert_same(back: dict[str, LowRank], edits: dict[str, LowRank]) -> None:
    assert back.keys() == edits.keys()
    for name, edit in edits.items():
        assert torch.equal(back[name].delta(), edit.delta())
