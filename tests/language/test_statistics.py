"""Statistics of the user's own text: one pass, resumable, with provenance, refused elsewhere."""

import errno
import json
import re
from dataclasses import replace

import pytest
import torch
from rankedit_recipes import language
from rankedit_recipes.language import LanguageError, Statistics
from rankedit_recipes.language.batching import Batches
from rankedit_recipes.language.commands import measuring, opening
from rankedit_recipes.language.corpus import Corpus
from rankedit_recipes.language.editing import Engine
from rankedit_recipes.language.sources import source_of
from rankedit_recipes.language.texts import read_texts

import rankedit as rk
from tests.language.models import TEXTS, family, small, tokenizer


def collected(model, texts=TEXTS, **options):
    return language.collect_statistics(model, tokenizer(), texts, progress=False, **options)


def test_all_layers_in_one_pass_without_padding():
    model, names, _ = small("llama")
    passes, rows = [], {name: [] for name in names}

    def count(_module, args, _output):
        passes.append(len(args[0]))  # after two in which the blocks are found

    handle = model.model.embed_tokens.register_forward_hook(count)
    statistics = collected(model, batch=4)
    handle.remove()
    assert list(statistics) == names
    assert sum(passes[2:]) == len(TEXTS)
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, args, _o, name=name: rows[name].append(args[0][0].double())
        )
        for name in names
    ]
    with torch.no_grad():
        for text in TEXTS:
            model(input_ids=torch.tensor([tokenizer()(text)["input_ids"]]))
    for handle in handles:
        handle.remove()
    for name, moment in statistics.items():
        expected = rk.SecondMoment(moment.dim).update(torch.cat(rows[name]))
        assert moment.count == expected.count
        torch.testing.assert_close(moment.matrix, expected.matrix, rtol=1e-4, atol=1e-8)
        assert moment.provenance.model == "LlamaForCausalLM"
        assert moment.provenance.corpus.startswith("text (16 texts, ")


def test_the_change_over_the_last_tenth_and_what_it_means():
    model, names, _ = small("llama")
    statistics = collected(model)
    part = collected(model, TEXTS[:-1])
    whole, before = statistics[names[0]], part[names[0]]
    a = rk.Metric.from_moment(whole).solve(torch.eye(48, dtype=torch.float64))
    moved = (before.matrix - whole.matrix) @ a
    # ‖A^½ D A^½‖² = tr(D A D A)
    expected = (torch.trace(moved @ moved) / 48) ** 0.5
    assert statistics.changes[names[0]] == pytest.approx(float(expected), rel=1e-6)
    table = statistics.describe()
    assert f"{statistics[names[0]].effective_rank:.1f} of 48" in table
    assert "this much suffices" in table
    restless = Statistics(statistics, dict.fromkeys(names, 0.11))
    assert "changes edits by up to 11.0%: more would help" in restless.describe()
    few = collected(model, TEXTS[:2]).describe()
    assert "3 projections have fewer than ten tokens per input: use more text, at least 480" in few
    calm = Statistics(statistics, dict.fromkeys(names, 1e-3))
    assert "changes edits by at most 0.1%: this much suffices" in calm.describe()
    unknown = Statistics(statistics).describe()
    assert "unknown" in unknown
    assert "changes edits was not measured" in unknown
    assert "suffices" not in unknown


def batches_of(texts, size=2, **options):
    corpus = Corpus(source_of(texts), **options)
    return Batches(corpus, tokenizer(), size, 1000, torch.device("cpu"))


def test_texts_of_like_length_run_together():
    texts = [" ".join(TEXTS[:n]) for n in (1, 5, 2, 4, 3, 1, 2)]
    batches = list(batches_of(texts))
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in batches]
    flat = [length for row in lengths for length in row]
    assert flat == sorted(len(tokenizer()(text)["input_ids"]) for text in texts)
    assert len(lengths) == 4
    assert all(
        batch["input_ids"].shape[1] == rows[-1]
        for batch, rows in zip(batches, lengths, strict=True)
    )
    again = [batch["input_ids"] for batch in batches_of(texts)]
    assert all(torch.equal(a["input_ids"], b) for a, b in zip(batches, again, strict=True))


def test_blocks_that_cannot_share_an_edit_are_read_together():
    model, names, _ = small("gemma2")
    statistics = language.collect_statistics(
        model, tokenizer(), TEXTS, layers=[0, 2], progress=False
    )
    assert list(statistics) == [names[0], names[2]]
    with pytest.raises(LanguageError, match="normalises what its projection gives, so that an"):
        Engine.build(model, tokenizer(), "memit", statistics, layers=[0, 2], progress=False)


def test_texts_are_cut_and_layers_chosen():
    model, names, _ = small("llama")
    statistics = collected(model, layers=[0, 2], length=4)
    assert list(statistics) == [names[0], names[2]]
    assert statistics[names[0]].count == 4 * len(TEXTS)


@pytest.mark.parametrize("stop", [1, 3, 8])
def test_a_crash_loses_nothing(tmp_path, stop):
    model, names, _ = small("llama")
    whole = collected(model, batch=2)
    file = tmp_path / "partial"
    calls = []

    def crash(_module, _args, _output):
        calls.append(1)
        if len(calls) > 2 + stop:  # two runs find the blocks
            raise RuntimeError("power cut")

    handle = model.model.embed_tokens.register_forward_hook(crash)
    with pytest.raises(RuntimeError, match="power cut"):
        collected(model, batch=2, checkpoint=rk.Checkpoint(file, seconds=0))
    handle.remove()
    assert list(tmp_path.iterdir())
    again = []
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: again.append(1))
    resumed = collected(model, batch=2, checkpoint=file)
    handle.remove()
    assert len(again) == 2 + 9 - stop
    for name in names:
        assert torch.equal(resumed[name].matrix, whole[name].matrix)
        assert resumed[name].provenance == whole[name].provenance
    assert resumed.changes == whole.changes
    assert not list(tmp_path.iterdir())


def counted(model):
    """Forwards of the model from now on."""
    calls = []
    model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("stop", ["before", "after"])
def test_a_failure_while_a_part_is_saved_loses_nothing(tmp_path, monkeypatch, number, stop):
    """The checkpoint of a pass stays until what came of it is on the disk."""
    model, names = family("llama")
    whole, file = collected(model, batch=2), tmp_path / "partial"

    def failing(items, path, **options):
        if path.name != f"partial.part{number}":
            return rk_save(items, path, **options)
        if stop == "after":
            rk_save(items, path, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    rk_save = rk.save
    with monkeypatch.context() as patch:
        patch.setattr("rankedit_recipes.language.passes.rk.save", failing)
        with pytest.raises(OSError, match="No space left"):
            collected(model, batch=2, checkpoint=rk.Checkpoint(file, seconds=1000))
    calls = counted(model)
    resumed = collected(model, batch=2, checkpoint=file)
    # Two find the blocks; what was done is not done again: 7 batches, then the last tenth.
    assert len(calls) == 2 + (1 if number == 0 else 0)
    for name in names:
        assert torch.equal(resumed[name].matrix, whole[name].matrix)
    assert resumed.changes == whole.changes
    assert not list(tmp_path.iterdir())


def test_what_is_kept_stays_until_the_result_is_saved(tmp_path, monkeypatch):
    model, names = family("llama")
    opened = opening.Opened("tiny", model, tokenizer())
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    out = tmp_path / "statistics.safetensors"

    def stats():
        sizes = measuring.Sizes(batch=4)
        source = source_of(tmp_path / "texts.txt")
        return list(measuring.stats_to(opened, source, "texts", None, sizes, out))

    with monkeypatch.context() as patch:
        patch.setattr(Statistics, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            stats()
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "statistics.partial.part0",
        "statistics.partial.part1",
        "texts.txt",
    ]
    calls = counted(model)
    stats()
    assert len(calls) == 4  # two find the blocks, once to see what fits
    assert sorted(f.name for f in tmp_path.iterdir()) == ["statistics.safetensors", "texts.txt"]
    assert list(language.load_statistics(out, model)) == names


def test_a_part_of_another_model_length_or_layer_is_refused(tmp_path):
    model, _ = family("llama")
    file = tmp_path / "partial"
    keep = rk.Checkpoint(file, keep=True)
    kept = collected(model, checkpoint=keep, layers=[0], length=8).kept
    assert [path.name for path in kept] == ["partial.part0", "partial.part1"]
    with pytest.raises(LanguageError, match=r"part0' is of another .*, or of other layers, leng"):
        collected(model, checkpoint=keep, layers=[0], length=9)
    with pytest.raises(LanguageError, match=r"part0' is of another .*, or of other layers, leng"):
        collected(model, checkpoint=keep, layers=[1], length=8)
    model.model.embed_tokens.weight.data[0, 0] += 1
    with pytest.raises(LanguageError, match=r"part0' is of another model"):
        collected(model, checkpoint=keep, layers=[0], length=8)
    model.model.embed_tokens.weight.data[0, 0] -= 1
    data = bytearray(kept[0].read_bytes())
    data[-5] ^= 4
    kept[0].write_bytes(data)
    with pytest.raises(LanguageError, match=r"part0' is damaged: .*Remove it to collect that part"):
        collected(model, checkpoint=keep, layers=[0], length=8)


def test_ctrl_c_names_the_checkpoint_that_the_call_takes(tmp_path):
    model, _ = family("llama")
    calls = []

    def interrupted(*_):
        calls.append(1)
        if len(calls) == 2 + 29 + 2:  # in the last tenth
            raise KeyboardInterrupt

    model.model.embed_tokens.register_forward_hook(interrupted)
    file = tmp_path / "partial"
    checkpoint = rk.Checkpoint(file, seconds=0)
    with pytest.raises(KeyboardInterrupt, match=re.escape(f"checkpoint='{file}', to go on")):
        collected(model, TEXTS * 2, batch=1, checkpoint=checkpoint, layers=[0])
    assert (tmp_path / "partial.last").exists()
    assert len(collected(model, TEXTS * 2, batch=1, checkpoint=checkpoint, layers=[0])) == 1
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_text_is_refused(tmp_path):
    model, _, _ = small("llama")
    rk.save({"x": rk.SecondMoment(48).update(torch.ones(1, 48))}, tmp_path / "partial.part0")
    with pytest.raises(LanguageError, match="is of another model, tokenizer or text"):
        collected(model, checkpoint=tmp_path / "partial")


def test_files_are_for_one_model_and_tokenizer(tmp_path):
    model, names, statistics = small("llama")
    file = tmp_path / "statistics.safetensors"
    statistics.save(file, model)
    loaded = language.load_statistics(file, model, tokenizer())
    assert list(loaded) == names
    assert all(torch.equal(loaded[n].matrix, statistics[n].matrix) for n in names)
    assert loaded.changes[names[0]] == pytest.approx(statistics.changes[names[0]], rel=5e-3)
    other, _ = family("llama")
    other.model.layers[1].mlp.down_proj.weight.data += 1
    with pytest.raises(rk.EditFileError, match="another base model"):
        language.load_statistics(file, other, tokenizer())
    changed = {n: m.clone() for n, m in statistics.items()}
    for moment in changed.values():
        moment.provenance = replace(moment.provenance, tokenizer="another one")
    Statistics(changed).save(file, model)
    with pytest.raises(LanguageError, match="collected with another tokenizer"):
        language.load_statistics(file, model, tokenizer())
    rk.save({"a": torch.ones(2)}, file)
    with pytest.raises(LanguageError, match="holds no statistics of a language model"):
        language.load_statistics(file, model)


def test_texts_come_from_files_folders_and_rows(tmp_path):
    (tmp_path / "b.txt").write_text("one\n\ntwo \n", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.jsonl").write_text(
        json.dumps({"text": "three", "x": 1}) + "\n", encoding="utf-8"
    )
    (tmp_path / "notes.md").write_text("no text")
    assert list(read_texts(tmp_path / "b.txt")) == ["one", "two "]
    assert list(read_texts(str(tmp_path))) == ["one", "two ", "three"]
    assert list(read_texts(iter(["a", "b"]))) == ["a", "b"]
    assert list(read_texts([{"text": "a"}])) == ["a"]


def test_texts_that_are_none(tmp_path):
    model, _, _ = small("llama")
    with pytest.raises(LanguageError, match="must hold at least one text"):
        collected(model, [" "])
    with pytest.raises(LanguageError, match=r"texts must be a file, a folder, .* got None"):
        collected(model, None)
    with pytest.raises(LanguageError, match=r"must be a file, or a folder with \.txt or \.jsonl"):
        collected(model, "Just a sentence.")
    with pytest.raises(LanguageError, match="item 1 must be a text"):
        collected(model, ["a", 3])
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(LanguageError, match=r"a.jsonl', line 2 must be a text"):
        collected(model, tmp_path)
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(LanguageError, match="is not UTF-8"):
        collected(model, tmp_path)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"length": 0}, {"length": -5}])
def test_sizes_below_one_are_refused(sizes):
    model, _, _ = small("llama")
    with pytest.raises(LanguageError, match=f"{next(iter(sizes))} must be at least 1, got"):
        language.collect_statistics(model, tokenizer(), ["a b"], progress=False, **sizes)
