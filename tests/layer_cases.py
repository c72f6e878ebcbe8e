"""Layers of kinds that no library knows by name, and how to read their weights honestly."""

from __future__ import annotations

import torch
from torch import nn


class Conv1D(nn.Module):
    """A layer of GPT-2's form: the weight is [in, out] and the sizes are called nx and nf."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return (x.view(-1, x.size(-1)) @ self.weight + self.bias).view(*x.shape[:-1], self.nf)


class Packed(nn.Module):
    """A quantised layer of nobody's library: 8-bit codes, no weight, computes in bfloat16 only."""

    def __init__(self, source):
        super().__init__()
        self.in_features, self.out_features = source.in_features, source.out_features
        scale = source.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (source.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x):
        if x.dtype != torch.bfloat16:
            raise RuntimeError("this kernel computes in bfloat16")
        return x @ (self.codes * self.scale).to(x.dtype).T


class Doubling(nn.Module):
    """A LoRA-like wrapper: base_layer and something on top."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.dropout = nn.Dropout(0.9)
        self.up = nn.Linear(base_layer.in_features, base_layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.dropout(x))


def matrix_of(layer):
    """The weight [out, in] of the kinds of layer below, read the honest way."""
    if isinstance(layer, Doubling):
        return (layer.base_layer.weight + layer.up.weight).detach().double()
    if isinstance(layer, Packed):
        return (layer.codes * layer.scale).double()
    weight = layer.weight.detach().double()
    return weight.T if isinstance(layer, Conv1D) else weight.flatten(1)
