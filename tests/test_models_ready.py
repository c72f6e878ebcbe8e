"""What is multiplied before a forward gives what would be multiplied in it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import rankedit as rk
from rankedit.errors import ConformanceError
from rankedit.models import adding
from rankedit.models.swapping import slots_of
from rankedit.placed import PlacedEdit
from rankedit.testing import check_edit
from tests.patching_cases import gated, low_rank

X = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))


def layer_of(*, bias=True):
    torch.manual_seed(0)
    return nn.Linear(16, 32, bias=bias).requires_grad_(requires_grad=False)


def by_hand(layer, edit, x, strength):
    tensors = {name: t.double() for name, t in edit.bind(lambda k: rk_outputs(layer, k)).items()}
    return nn.functional.linear(
        x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double()
    ) + strength * edit.added(x.double(), tensors)


def rk_outputs(layer, keys):
    return keys.double() @ layer.weight.double().T


@pytest.mark.parametrize("make", [low_rank, gated])
@pytest.mark.parametrize("strength", [1.0, 0.0, -0.7, 2.0**20, 3e25, 1e-12])
@pytest.mark.parametrize("shape", [(16,), (1, 16), (2, 3, 16), (0, 16)])
def test_every_strength_and_shape(make, strength, shape):
    edit, x = make(16, 32), torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for layer in (layer_of(), layer_of(bias=False)):
        right = by_hand(layer, edit, x, strength)
        with rk.attach(layer, edit) as attachment:
            attachment.set(strength=strength)
            for recorded in (False, True):
                with torch.set_grad_enabled(recorded):
                    found = layer(x)
                torch.testing.assert_close(
                    found.double(), right, rtol=1e-4, atol=1e-5 * max(1, strength)
                )


def test_strength_zero_leaves_the_bits():
    layer = layer_of()
    base = layer(X)
    for edit in (low_rank(16, 32), gated(16, 32)):
        with rk.attach(layer, edit) as attachment:
            attachment.set(strength=0.0)
            assert torch.equal(layer(X), base)


def test_what_is_ready_follows_every_change():
    layer, edit, other = layer_of(), low_rank(16, 32), low_rank(16, 32) * -3.0
    attachment = rk.attach(layer, edit, strength=0.5)
    expect = by_hand(layer, edit, X, 0.5)
    torch.testing.assert_close(layer(X).double(), expect, rtol=1e-4, atol=1e-5)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(copied(X).double(), expect, rtol=1e-4, atol=1e-5)
    attachment.refresh(other)
    expect = by_hand(layer, other, X, 0.5)
    torch.testing.assert_close(layer(X).double(), expect, rtol=1e-4, atol=1e-5)
    attachment.set(strength=torch.tensor([1.0, 0.0]))
    both = torch.stack([by_hand(layer, other, x, s) for x, s in zip(X, (1.0, 0.0), strict=True)])
    torch.testing.assert_close(layer(X).double(), both, rtol=1e-4, atol=1e-5)
    attachment.set(strength=0.25)
    expect = by_hand(layer, other, X, 0.25)
    torch.testing.assert_close(layer(X).double(), expect, rtol=1e-4, atol=1e-5)
    layer.double()
    torch.testing.assert_close(layer(X.double()), expect, rtol=1e-6, atol=1e-6)


def test_a_strength_beyond_the_range_keeps_the_digits_of_tiny_rows():
    """Rows of 1e-30 times 1e-12 are none of float32's; with inputs of 1e25 they are."""
    layer = layer_of(bias=False)
    nn.init.zeros_(layer.weight)
    edit = rk.LowRank(torch.full((32, 1), 1e-30), torch.ones(1, 16))
    with rk.attach(layer, edit) as attachment, torch.no_grad():
        attachment.set(strength=1e-12)
        found = layer(torch.full((1, 16), 1e25))
    torch.testing.assert_close(found, torch.full((1, 32), 1.6e-16), rtol=1e-5, atol=0)


def test_rows_of_a_layer_and_learned_tensors_are_added_as_before():
    layer = layer_of()
    base, part = layer(X), low_rank(16, 16)
    with rk.attach(nn.Sequential(layer), {"0[8:24]": part}, strength=2.0), torch.no_grad():
        right = base + nn.functional.pad(2 * X @ part.delta().T, (8, 8))
        torch.testing.assert_close(layer(X), right, rtol=1e-4, atol=1e-5)
    learned = low_rank(16, 32).up.clone().requires_grad_()
    edit = rk.LowRank(learned, low_rank(16, 32).down)
    with rk.attach(layer, edit):
        assert slots_of(layer)[0].ready is None
        layer(X).sum().backward()
        with torch.no_grad():
            learned.zero_()
        torch.testing.assert_close(layer(X), nn.functional.linear(X, layer.weight, layer.bias))
    assert learned.grad is not None


def test_told_edits_have_their_strength_ready():
    layer, edit = layer_of(), PlacedEdit(torch.randn(2, 3, 32), 16)
    base = layer(X)
    with rk.attach(layer, edit, strength=-2.0) as attachment:
        rows, time = torch.randn(2, 3, 2), torch.tensor([0.25, 1.0])
        attachment.tell(rows=rows, time=time)
        weights = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
        right = base - 2 * torch.einsum("btn,bk,nko->bto", rows, weights, edit.targets)
        torch.testing.assert_close(layer(X), right, rtol=1e-4, atol=1e-5)


def test_nothing_is_multiplied_by_the_strength_in_a_forward(monkeypatch):
    """Two products and no more, which is what one token has time for."""
    layer, called = layer_of(), []
    with rk.attach(layer, low_rank(16, 32), strength=0.5), torch.no_grad():
        monkeypatch.setattr(adding, "_joined", lambda *_: called.append("joined"))
        monkeypatch.setattr(adding, "_added", lambda *_: called.append("added"))
        with torch.profiler.profile() as profile:
            layer(X)
    counted = {event.key: event.count for event in profile.key_averages()}
    assert called == []
    assert "aten::mul" not in counted
    assert "aten::item" not in counted
    assert counted["aten::addmm_"] == 1


def test_a_wrong_claim_of_what_an_edit_is_linear_in_is_refused():
    class Wrong(rk.LowRank):
        linear_in = ("up", "down")

    with pytest.raises(ConformanceError, match="added must be linear in up, down together"):
        check_edit(Wrong(torch.randn(6, 2), torch.randn(2, 4)))


def test_edits_with_the_same_keys_share_their_basis_and_others_do_not():
    edit = gated(16, 32, 3)
    again = edit.with_targets(edit.targets + 1)
    moved = edit.changed(keys=edit.keys * 2, images=edit.images * 2)
    for each in (edit, again, moved):
        fresh = rk.GatedEdit.from_images(each.keys, each.targets, each.images, each.gate)
        outputs = lambda k: torch.zeros(len(k), 32)  # noqa: E731
        for _ in range(2):
            found, right = each.bind(outputs), fresh.bind(outputs)
            assert all(torch.equal(found[name], right[name]) for name in right)
    assert vars(edit)["_known"] is vars(again)["_known"]
    assert vars(edit)["_known"] is not vars(moved)["_known"]
    learned = edit.changed(keys=edit.keys.clone().requires_grad_())
    learned.bind(outputs)
    assert vars(learned)["_known"] == []
