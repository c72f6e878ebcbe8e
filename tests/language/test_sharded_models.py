"""What a search on a sharded model is refused with can be done, word for word."""

import copy
import re
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from rankedit_recipes import language
from rankedit_recipes.command_line.options import Offloading
from rankedit_recipes.language.commands import cli
from typer.main import get_command

import rankedit as rk
from tests.language.models import TEXTS, small, some_requests, tokenizer

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def sharded():
    """A model under FSDP2, of one process: its parameters are put together for forward passes."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model = copy.deepcopy(small()[0])
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    yield fully_shard(model, mesh=mesh)
    dist.destroy_process_group()


def edited(model, statistics, **options):
    return language.edit(
        model, tokenizer(), some_requests(1), "rome", statistics=statistics, prefixes=[],
        progress=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("layers", [1, None, "traced"])
def test_every_search_is_refused_before_anything_runs(sharded, monkeypatch, layers):
    monkeypatch.setattr(type(sharded), "forward", None)
    with pytest.raises(language.LanguageError, match=r"^edit: the model is sharded \(fully_shard"):
        edited(sharded, small()[2], layers=layers)
    with pytest.raises(language.LanguageError, match=r"^edit: the model is sharded \(fully_shard"):
        language.Stream.open(None, sharded, tokenizer(), statistics=small()[2], progress=False)


def test_the_command_that_it_names_has_these_options(sharded):
    with pytest.raises(language.LanguageError) as caught:
        edited(sharded, small()[2])
    (command,) = re.findall(r"`rankedit language (.*?)`", str(caught.value))
    name, *words = command.split()
    parameters = {o: p for p in get_command(cli.app).commands[name].params for o in p.opts}
    options = [word for word in words if word.startswith("--")]
    assert options == ["--model", "--statistics", "--offload", "--out"]
    assert set(options) <= parameters.keys()
    assert words[words.index("--offload") + 1] in get_args(Offloading)


def test_the_way_that_it_names_leads_to_the_edits(sharded, tmp_path):
    found = language.collect_statistics(
        sharded, tokenizer(), TEXTS, layers=[1], batch=2, progress=False
    )
    found.save(tmp_path / "statistics", sharded)
    whole = small()[0]
    assert rk.load(tmp_path / "statistics").metadata["sketches"]
    edited(whole, tmp_path / "statistics", layers=[1]).save(tmp_path / "edits", model=whole)
    ids = torch.tensor([tokenizer()("Miles Davis plays the")["input_ids"]])
    edits = rk.load(tmp_path / "edits")
    language.check_base(sharded, edits)
    with torch.no_grad():
        before = sharded(input_ids=ids).logits
        with rk.attach(sharded, dict(edits)):
            after = sharded(input_ids=ids).logits
        with rk.attach(whole, dict(edits)):
            right = whole(input_ids=ids).logits
    torch.testing.assert_close(after, right, rtol=1e-4, atol=1e-4)
    assert float((after - before).norm()) > 10 * float((after - right).norm())
