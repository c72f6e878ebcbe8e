"""Models that are on several devices, on disk or split over processes: right, or refused."""

from __future__ import annotations

import copy
import functools
import os
import tempfile
import warnings

import pytest
import torch
import torch.distributed as dist
from rankedit_recipes import language

import rankedit as rk
from tests.language.models import TEXTS, small, some_requests, tokenizer
from tests.two_processes import tracebacks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed"),
]


def edited(model):
    """What a search finds, and what the edited model says then."""
    tok, found = tokenizer(), found_in(model)
    with found.attach(model):
        said = language.generate(model, tok, ["Miles Davis plays the"], length=4)
    return {name: edit.delta() for name, edit in found.edits.items()}, said


def statistics_of(model):
    # 18 texts and a last tenth of 2, one in a batch: processes that hold one model share evenly.
    texts = [*TEXTS, *TEXTS[:4]]
    return language.collect_statistics(
        model, tokenizer(), texts, layers=[1], batch=1, progress=False
    )


def found_in(model):
    tok, statistics = tokenizer(), statistics_of(model)
    return language.edit(
        model, tok, some_requests(1), "rome", statistics=statistics, layers=[1], prefixes=[],
        progress=False,
    )  # fmt: skip


def same_as_plain(model):
    (right, heard), (found, said) = edited(small()[0]), edited(model)
    assert found.keys() == right.keys()
    for name, delta in right.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-3, atol=1e-5)
    assert said == heard


@pytest.mark.parametrize("where", ["cpu", "disk", "both"])
def test_a_device_map(tmp_path, where):
    """As `device_map="auto"` places it when memory is short: blocks on the CPU, and on disk."""
    from transformers import AutoModelForCausalLM

    small()[0].save_pretrained(tmp_path / "model")
    kinds = {"cpu": ("cpu",) * 3, "disk": ("disk",) * 3, "both": ("cpu", "disk", "cpu")}[where]
    placed = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    placed |= {"model.rotary_emb": "cpu"}
    placed |= {f"model.layers.{number}": kind for number, kind in enumerate(kinds)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=placed, offload_folder=tmp_path / "offload",
        dtype=torch.float32,
    ).eval()  # fmt: skip
    same_as_plain(model)


def test_automatic(tmp_path):
    from transformers import AutoModelForCausalLM

    small()[0].save_pretrained(tmp_path / "model")
    size = sum(t.numel() * t.element_size() for t in small()[0].parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of accelerate, about a model that does not fit
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map="auto", max_memory={"cpu": size // 2},
            offload_folder=tmp_path / "offload", dtype=torch.float32,
        ).eval()  # fmt: skip
    assert "disk" in model.hf_device_map.values()
    same_as_plain(model)


# --------------------------------------------------------------------------- two processes


def whole():
    """A model of the test's own: the one that is kept stays whole."""
    return copy.deepcopy(small()[0])


def shard(model):
    from torch.distributed.fsdp import fully_shard

    for block in model.model.layers:
        fully_shard(block)
    return fully_shard(model)


def collected_and_attached(model):
    """Statistics and what is attached are right; the search is refused."""
    plain = small()[0]
    right, found = statistics_of(plain), statistics_of(model)
    for name, moment in right.items():
        torch.testing.assert_close(found[name].matrix, moment.matrix, rtol=1e-5, atol=1e-6)
    # Each process saves for itself: the marks of the model are made of gathered weights.
    with tempfile.TemporaryDirectory() as folder:
        found.save(f"{folder}/statistics", model)
        assert set(language.load_statistics(f"{folder}/statistics", plain, tokenizer())) == {*right}
    with pytest.raises(language.LanguageError, match=r"the model is sharded.*device_map="):
        found_in(model)
    _, heard = edited(plain)
    with found_in(plain).attach(model):
        said = language.generate(model, tokenizer(), ["Miles Davis plays the"], length=4)
    assert said == heard


def sharded(rank):
    collected_and_attached(shard(whole()))


def attached_first(rank):
    _, heard = edited(small()[0])
    model = whole()
    with found_in(model).attach(model):
        shard(model)
        said = language.generate(model, tokenizer(), ["Miles Davis plays the"], length=4)
    assert said == heard


def loaded(folder, rank, **sizes):
    """As transformers loads it when it is told how many processes share it."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    return AutoModelForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(**sizes), dtype=torch.float32
    ).eval()


def parallel(folder, rank):
    """`tp_plan`: down-projections are split by their inputs: no process has what they read."""
    model = loaded(folder, rank, tp_size=2)
    for call in (found_in, language.find_blocks):
        with pytest.raises(language.LanguageError, match=r"tensor parallelism.*device_map"):
            call(model)
    batches = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6]])]
    with pytest.raises(rk.StatisticsError, match=r"all must run the same batches"):
        rk.collect(model, "*.1.mlp.down_proj", batches, progress=False)
    edit = rk.LowRank(torch.ones(32, 1), torch.ones(1, 48))
    with pytest.raises(rk.AttachError, match=r"split over devices|forward replaced"):
        rk.attach(model, {"model.layers.1.mlp.down_proj": edit})


def loaded_sharded(folder, rank):
    collected_and_attached(loaded(folder, rank, fsdp_size=2))


def test_two_processes(tmp_path):
    small()[0].save_pretrained(tmp_path / "model")
    scenarios = {
        "sharded": sharded,
        "attached first": attached_first,
        "parallel": functools.partial(parallel, str(tmp_path / "model")),
        "loaded sharded": functools.partial(loaded_sharded, str(tmp_path / "model")),
    }
    failures = {n: [t for t in found if t] for n, found in tracebacks(scenarios).items()}
    assert not any(failures.values()), "\n".join(
        f"{n}: {t}" for n, f in failures.items() for t in f
    )
