"""Edits whose layer gets another weight, or runs with weights that are not its own, are told of."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from rankedit import AttachError, attach, fuse_
from tests.patching_cases import low_rank

X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
NORMALISED = [
    (lambda: nn.Linear(16, 8), nn.BatchNorm1d, X, fuse_linear_bn_eval),
    (lambda: nn.Conv2d(16, 8, 1), nn.BatchNorm2d, X[:, :, None, None], fuse_conv_bn_eval),
]


def normalised(made, norm):
    torch.manual_seed(0)
    model = nn.Sequential(made(), norm(8)).eval().requires_grad_(requires_grad=False)
    model[1].running_var.uniform_(2, 9)
    return model


@pytest.mark.parametrize(("made", "norm", "x", "fused"), NORMALISED)
def test_a_normalisation_is_fused_with_the_edit_or_not_at_all(made, norm, x, fused):
    model, edit = normalised(made, norm), low_rank(16, 8)
    with attach(model, {"0": edit}):
        edited = model(x)
        with pytest.raises(AttachError, match=r"'weight' of a Edited.*exchanged.*fuse_, exchange"):
            fused(*model)
        assert torch.equal(model(x), edited)
    # What the message advises gives the edited outputs.
    fuse_(model, {"0": edit})
    torch.testing.assert_close(fused(*model)(x), edited)
    torch.testing.assert_close(fuse(model)(x), edited)


def test_a_checkpoint_that_is_assigned():
    layer, other = nn.Linear(16, 8), nn.Linear(16, 8)
    with attach(layer, low_rank(16, 8)):
        with pytest.raises(RuntimeError, match=r"attach: .*a checkpoint that is assigned"):
            layer.load_state_dict(other.state_dict(), assign=True)
        layer.weight, layer.bias = layer.weight, nn.Parameter(torch.zeros(8))  # as tying does
        layer.load_state_dict(other.state_dict())
    layer.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("empty", [True, False])
def test_stacked_models(empty):
    models = [nn.Sequential(nn.Linear(16, 8)) for _ in range(2)]
    edits = [{"0": low_rank(16, 8, seed)} for seed in range(2)]
    attached = [attach(*pair) for pair in zip(models, edits, strict=True)]
    wanted = torch.stack([model(X) for model in models])

    def stacked(skeleton):
        state = stack_module_state(models)
        return torch.vmap(lambda p, b: functional_call(skeleton, (p, b), (X,)))(*state)

    skeleton = copy.deepcopy(models[0]).to("meta") if empty else models[0]
    with pytest.raises(AttachError, match=r"weights of several models are stacked.*with fuse_"):
        stacked(skeleton)
    if empty:
        with pytest.raises(AttachError, match="on the meta device"):
            functional_call(skeleton, dict(models[0].named_parameters()), (X,))
    for attachment, pair in zip(attached, zip(models, edits, strict=True), strict=True):
        attachment.detach()
        fuse_(*pair)
    torch.testing.assert_close(stacked(copy.deepcopy(models[0]).to("meta")), wanted)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_other_transforms_run_edited_layers():
    model, edit = nn.Sequential(nn.Linear(16, 8)), low_rank(16, 8)
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    with attach(model, {"0": edit}):
        torch.testing.assert_close(torch.vmap(model)(X), model(X))
        given = functional_call(model, {"0.weight": weight, "0.bias": torch.zeros(8)}, (X,))
        torch.testing.assert_close(given, X @ (weight + edit.delta()).T)
        own = {name: value.detach() for name, value in model.named_parameters()}
        slopes = torch.vmap(
            torch.func.grad(lambda p, x: functional_call(model, p, (x,)).sum()), (None, 0)
        )
        torch.testing.assert_close(slopes(own, X)["0.weight"], X[:, None].expand(-1, 8, -1))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [True, False])
def test_scripts(inside):
    model = nn.Sequential(nn.Linear(16, 8))
    with attach(model, {"0": low_rank(16, 8)}):
        with pytest.raises(AttachError, match=r"torch\.jit\.script: .*record .*jit\.trace"):
            torch.jit.script(model if inside else model[0])
        edited = model(X)
        torch.testing.assert_close(torch.jit.trace(model, X)(X), edited)
    torch.testing.assert_close(torch.jit.script(model)(X), model(X))
