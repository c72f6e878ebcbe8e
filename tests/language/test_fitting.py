"""What statistics take of the memory: told beforehand, kept to, and no more than is said."""

import functools
import json

import pytest
import torch
from rankedit_recipes.command_line import memory
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.language import LanguageError
from rankedit_recipes.language.commands import cli, fitting, measuring, opening, outlines
from rankedit_recipes.language.methods import METHODS
from rankedit_recipes.language.model.layers import all_blocks, default_blocks
from rankedit_recipes.language.sources import source_of
from typer.testing import CliRunner

import rankedit as rk
from tests.language.models import TEXTS, family, small, tokenizer

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192,
    "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(LLAMA_70B))
    return folder


@functools.cache
def outline(folder):
    return outlines.outline_of(ModelChoice(str(folder)))


def plan(monkeypatch, folder, free, *arguments):
    monkeypatch.setattr(fitting, "free_memory", lambda _: free)
    monkeypatch.setattr(fitting, "outline_of", lambda _: outline(folder))
    given = ["stats", "--model", str(folder), "--device", "cpu", "--dtype", "bfloat16", "--dry-run"]
    result = CliRunner().invoke(cli.app, [*given, *arguments])
    if result.exception is not None:
        return str(result.exception)
    return result.output


def test_llama_70b_is_planned_by_its_configuration_alone(large, monkeypatch):
    said = plan(monkeypatch, large, 2e12)
    assert "70.55 billion weights, 141.1 GB in bfloat16; 80 blocks" in said
    assert "1,858.9 GB are free beside the model" in said
    assert "statistics of 80 blocks, width 28,672: 3.3 GB each" in said
    assert "do not fit" not in said
    some = plan(monkeypatch, large, 240e9)
    fits = int(some.partition("they do not fit: those of ")[2].partition(" block")[0])
    assert "which is the default: those that MEMIT edits, as measured" in some
    assert fitting.statistics_bytes([28672] * fits) <= 0.9 * 98.9e9
    assert fitting.statistics_bytes([28672] * (fits + 1)) > 0.9 * 98.8e9
    # So many layers, typed, are not argued with; one more is told.
    for more, told in ((0, False), (1, True)):
        typed = ",".join(map(str, range(20, 20 + fits + more)))
        again = plan(monkeypatch, large, 240e9, "--layers", typed)
        assert f"statistics of {fits + more} blocks, width 28,672" in again
        assert ("they do not fit: those of" in again) == told
    assert "give --layers, so that" in plan(monkeypatch, large, 240e9, "--shard", "1/2")
    assert "statistics of one block take" in plan(monkeypatch, large, 150e9)
    assert "leaves no room in main memory" in plan(monkeypatch, large, 100e9)
    assert "as numbers of blocks, not as names" in plan(
        monkeypatch, large, 2e12, "--layers", "*.down_proj"
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "falcon", "phi", "gemma2", "qwen3"])
def test_widths_are_those_of_the_projections_that_are_found_by_running(name):
    model, _ = family(name)
    with torch.device("meta"):
        drawn = type(model)(model.config)
    by_shapes, measured = outlines.sizes_of(drawn), outlines.measured_outline(model)
    assert by_shapes.widths == measured.widths
    assert by_shapes.numbers == measured.numbers
    assert [b.down for b in by_shapes.blocks] == [b.down for b in measured.blocks]


@pytest.mark.parametrize("width", [48, 256, 300, 1000])
def test_the_sums_take_what_is_said(width):
    stripes = rk.SecondMoment(width)._parts.ordinary.outer._stripes
    assert fitting.moment_bytes(width) == sum(s.numel() * s.element_size() for s in stripes)


def test_more_memory_never_has_fewer_blocks():
    outline = outlines.measured_outline(small("llama")[0])
    one = fitting.statistics_bytes(outline.widths[:1])
    counts = [len(fitting.fitting(outline, one * part / 10)) for part in range(5, 40)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 3)


def test_layers_that_fit_are_the_default_and_said(tmp_path, monkeypatch):
    model, names, _ = small("llama")
    opened = opening.Opened("tiny", model, tokenizer())
    widths = outlines.measured_outline(model).widths
    free = fitting.statistics_bytes(widths[:1]) / 0.9 + 1
    monkeypatch.setattr(measuring, "free_memory", lambda _: free)
    source, sizes = source_of(TEXTS), measuring.Sizes(batch=4)
    out = tmp_path / "s.safetensors"
    said = list(measuring.stats_to(opened, source, "texts", None, sizes, out))
    number = default_blocks(model, all_blocks(model), METHODS["memit"])[-1].index
    assert said[0].startswith(f"--layers {number}: 1 of 3 blocks, whose statistics fit into")
    assert list(rk.load(out)) == [names[number]]
    shard = measuring.Sizes(shard=rk.Shard(1, 2))
    with pytest.raises(LanguageError, match="so that all shards have the same ones"):
        list(measuring.stats_to(opened, source, "texts", None, shard, out))


def test_what_is_left_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    machine = memory.free_memory(torch.device("cpu"))
    assert machine > 1e6
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.free_memory(torch.device("cpu")) == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) > 1e6
