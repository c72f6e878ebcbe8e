"""A fingerprint is the documented hash, and changes with every bit of the weights."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from torch import nn

from rankedit.errors import ProjectionError
from rankedit.models.fingerprints import BLOCK_BYTES, SAMPLED_BYTES
from rankedit.models.projections import fingerprint
from tests.layer_cases import Doubling

IN, OUT = 12, 20


class TestFingerprint:
    def test_it_is_the_documented_hash(self):
        layer = nn.Linear(2, 3, bias=False)
        expected = hashlib.sha256(
            b"rankedit.weights.1\0weight\0float32\0"
            + struct.pack("<3Q", 2, 3, 2)
            + layer.weight.detach().numpy().astype("<f4").tobytes()
        ).hexdigest()
        assert fingerprint(layer) == expected

    def test_a_large_weight_is_sampled_as_documented(self):
        rows = SAMPLED_BYTES // 1024 + 1000
        layer = nn.Linear(256, rows, bias=False)
        content = layer.weight.detach().numpy().tobytes()
        count = SAMPLED_BYTES // BLOCK_BYTES
        starts = [(i * (len(content) - BLOCK_BYTES)) // (count - 1) for i in range(count)]
        expected = hashlib.sha256(
            b"rankedit.weights.1\0weight\0float32\0" + struct.pack("<3Q", 2, rows, 256)
        )
        for start in starts:
            expected.update(content[start : start + BLOCK_BYTES])
        assert fingerprint(layer) == expected.hexdigest()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
    def test_it_changes_with_every_bit_and_with_the_dtype(self, dtype):
        torch.manual_seed(0)
        layer = nn.Linear(IN, OUT)
        full = fingerprint(layer)
        layer.requires_grad_(requires_grad=False).to(dtype)
        small = fingerprint(layer)
        assert small != full
        bits = layer.weight.view(torch.uint8)
        bits[3, 5] ^= 1
        assert fingerprint(layer) != small
        bits[3, 5] ^= 1
        assert fingerprint(layer) == small

    def test_wrappers_do_not_enter(self):
        layer = nn.Linear(IN, OUT)
        assert fingerprint(Doubling(layer)) == fingerprint(layer)

    def test_meta_weights_are_refused(self):
        with pytest.raises(ProjectionError, match="'bias' of Linear is on the meta device"):
            fingerprint(nn.Linear(2, 2, device="meta"))
