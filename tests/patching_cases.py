"""Edits and checks that the tests of attaching and fusing share."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from rankedit import GatedEdit, LowRank, Metric, Sigmoid
from rankedit.models.swapping import slots_of

STRENGTH = 0.7


def low_rank(in_features, out_features, seed=0, rank=2):
    """A static edit of the size of a layer."""
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(out_features, rank, generator=generator) / out_features**0.5,
        torch.randn(rank, in_features, generator=generator) / in_features**0.5,
    )


def gated(in_features, out_features, seed=0, count=2):
    """A gated edit that is well open on random inputs."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(4 * in_features, in_features, generator=generator)
    metric = Metric.from_matrix(samples.T @ samples / len(samples), ridge=1e-3)
    keys = torch.randn(count, in_features, generator=generator)
    targets = torch.randn(count, out_features, generator=generator)
    return GatedEdit(keys, targets, metric, Sigmoid(bias=0.1, temperature=0.5))


KINDS = {"low_rank": low_rank, "gated": gated}


def tensors_in(model):
    """The tensors of all attached edits."""
    slots = [slot for module in model.modules() for slot in slots_of(module)]
    return [(name, tensor) for slot in slots for name, tensor in slot.tensors.items()]


def added_to(weight, edit, x):
    """What an edit adds to a layer of this weight [out, in] for inputs [..., in]; the truth."""
    tensors = edit.bind(lambda keys: keys.double() @ weight.double().T)
    return edit.added(x, tensors)


def state_of(model):
    """Everything about a model that attaching must put back: classes, attributes and bits."""
    parts = {}
    for name, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers}
        bits = {
            key: None if value is None else (id(value), digest(value))
            for key, value in tensors.items()
        }
        names = sorted(key for key in vars(module) if key != "_modules")
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        kept = sorted(module._non_persistent_buffers_set)
        parts[name] = (type(module), names, bits, kept, hooks)
    return parts


def digest(tensor):
    """Hash of a tensor's bytes; of its storage's size and type on the meta device."""
    if tensor.is_meta:
        return str(tensor.shape)
    flat = tensor.detach().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


class Residual(nn.Module):
    """Three layers, the second read through a nonlinearity; smaller than any real model."""

    def __init__(self, width=16):
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 8, bias=False)

    def forward(self, x):
        return self.head(x + self.outer(torch.tanh(self.inner(x))))


def residual(seed=0):
    """A small model with the same weights every time."""
    torch.manual_seed(seed)
    return Residual().requires_grad_(requires_grad=False)
