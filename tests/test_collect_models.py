"""Collecting from models that other libraries have changed."""

import pytest
import torch
from torch import nn

from rankedit import SecondMoment
from rankedit.collecting.collect import collect
from rankedit.edits import LowRank
from rankedit.models.patching import attach

WIDTH = 6


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.head = (
            nn.Linear(WIDTH, 9),
            nn.Linear(9, WIDTH),
            nn.Linear(WIDTH, 2),
        )

    def forward(self, x):
        return self.head(x + self.down(torch.tanh(self.up(x))))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 4, WIDTH, generator=generator) for _ in range(3)]


def expected(data):
    moment = SecondMoment(9)
    for x in data:
        moment.update(torch.tanh(Tower().up(x)))
    return moment


def test_offloaded_weights_stay_offloaded(data):
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(Tower(), execution_device=torch.device("cpu"))
    with torch.no_grad():
        before = model(data[0])
    moment = collect(model, "down", data, progress=False)["down"]
    assert torch.equal(moment.matrix, expected(data).matrix)
    assert all(parameter.is_meta for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(data[0]), before)


def test_layers_with_a_lora(data):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["down"])
    model = peft.get_peft_model(Tower(), config)
    moments = collect(model, "*down", data, progress=False)
    assert list(moments) == ["base_model.model.down"]
    assert torch.equal(moments["base_model.model.down"].matrix, expected(data).matrix)


def test_layers_with_an_edit_and_below_one(data):
    model = Tower()
    generator = torch.Generator().manual_seed(2)
    edit = LowRank(
        torch.randn(9, 1, generator=generator), torch.randn(1, WIDTH, generator=generator)
    )
    with attach(model, {"up": edit}):
        moments = collect(model, ["up", "down"], data, progress=False)
        hidden = SecondMoment(9)
        for x in data:
            hidden.update(torch.tanh(model.up(x)))
    assert torch.equal(moments["down"].matrix, hidden.matrix)
    assert not torch.equal(moments["down"].matrix, expected(data).matrix)
    plain = collect(model, ["up", "down"], data, progress=False)
    assert torch.equal(moments["up"].matrix, plain["up"].matrix)
    # statistics of an edited model are not those of the model
    assert moments["up"].provenance.weights != plain["up"].provenance.weights


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sums_are_kept_where_the_data_is(data, tmp_path):
    model, moved = Tower().cuda(), [x.cuda() for x in data]
    moment = collect(model, "down", moved, progress=False)["down"]
    assert moment.matrix.device.type == "cuda"
    torch.testing.assert_close(moment.matrix.cpu(), expected(data).matrix, rtol=1e-4, atol=1e-5)

    def failing():
        yield moved[0]
        raise OSError("gone")

    path = tmp_path / "partial"
    with pytest.raises(OSError, match="gone"):
        collect(model, "down", failing(), checkpoint=path, progress=False)
    resumed = collect(model, "down", moved, checkpoint=path, progress=False)["down"]
    assert torch.equal(resumed.matrix, moment.matrix)
