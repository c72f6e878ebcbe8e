"""Streams of edits: any order, any number of batches, exact undo, crashes, conflicts."""

import functools
import json
import random
from dataclasses import replace

import pytest
import torch
from rankedit_recipes.language import LanguageError, Request, Stream
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.streams.folder import Folder

import rankedit as rk
from tests.language.models import family, quick, small, some_requests, tokenizer
from tests.problems import relative

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")
PREFIXES = ("A day is gone. ",)


def begun(folder=None, method="memit", **options):
    model, _, statistics = small("llama")
    settings = None if method is None else quick(method, steps=3)
    arguments = {"statistics": statistics, "layers": [0, 1], "method": settings}
    if method in ("rome", "emmet"):
        arguments["layers"] = 1
    return Stream.open(
        folder,
        model,
        tokenizer(),
        prefixes=PREFIXES,
        progress=False,
        **{**arguments, **options},
    )


@functools.cache
def known(method="memit"):
    """Keys and values of six facts, searched for once."""
    facts, _ = begun(method=method).engine.facts(some_requests(6))
    return facts


def part(facts, rows):
    rows = list(rows)

    def of(named):
        return {name: tensor[rows] for name, tensor in named.items()}

    return Facts(tuple(facts.requests[i] for i in rows), of(facts.keys), of(facts.lacking), {})


def same(edits, others, tolerance=1e-9):
    assert edits.keys() == others.keys()
    return all(relative(edits[n].delta(), others[n].delta()) <= tolerance for n in edits)


@pytest.mark.parametrize("method", ["memit", "alphaedit", "encore", "emmet", "rome"])
def test_a_stream_equals_one_batch_in_any_order(method):
    facts = known(method)
    batch = begun(method=method)
    batch.enter(facts)
    order = list(range(6))
    random.Random(0).shuffle(order)
    stream = begun(method=method)
    for number in order[:4]:
        stream.enter(part(facts, [number]))
    stream.enter(part(facts, order[4:]))
    assert same(stream.edits(), batch.edits())
    engine_edit = batch.engine.edit(some_requests(6))
    assert same(engine_edit.edits, batch.edits(), 1e-5)


def test_undo_leaves_no_trace():
    facts, stream, never = known(), begun(), begun()
    stream.enter(facts)
    never.enter(part(facts, [0, 2, 5]))
    labels = [request.label for request in facts.requests]
    assert stream.undo(labels[4]) == [facts.requests[4]]
    stream.undo(labels[1], labels[3])
    assert stream.names() == never.names() == [labels[0], labels[2], labels[5]]
    for name, edit in stream.edits().items():
        assert torch.equal(edit.delta(), never.edits()[name].delta())
    assert stream.undo() == [facts.requests[5]]
    stream.undo(*stream.names())
    assert stream.edits() == {}
    assert len(stream) == 0
    with pytest.raises(LanguageError, match="no fact is called 'anything'; the stream has 0"):
        stream.undo()


def test_undo_of_an_unknown_fact_changes_nothing():
    stream = begun()
    stream.enter(part(known(), [0, 1]))
    with pytest.raises(LanguageError, match="no fact is called 'nobody'; the stream has 2, such"):
        stream.undo(stream.names()[0], "nobody")
    assert len(stream) == 2


def test_adding_searches_and_skips_what_is_there():
    stream, requests = begun(), some_requests(3)
    assert stream.add(requests[:2]) == [r.label for r in requests[:2]]
    assert stream.add(requests) == [requests[2].label]
    assert stream.add(requests) == []
    assert stream.requests() == requests
    assert requests[0].label in stream
    model = stream.engine.model
    with stream.attach() as attachment:
        assert set(attachment.names) == set(stream.edits())
        with pytest.raises(LanguageError, match=r"Stream.conflicts: .* no longer gives what it"):
            stream.add([Request("{} is", "somebody", "else")])
    assert rk.detach_all(model) == 0


def test_replacing_is_undoing_and_adding(tmp_path):
    stream = begun(tmp_path / "stream")
    requests = some_requests(3)
    stream.add(requests)
    other = replace(requests[1], target="lead")
    assert stream.replace(other) == requests[1]
    fresh = begun()
    fresh.add([requests[0], requests[2], other])
    assert stream.requests() == fresh.requests()
    assert same(stream.edits(), fresh.edits(), 1e-5)
    assert begun(tmp_path / "stream").requests() == fresh.requests()
    with pytest.raises(LanguageError, match=r"Stream\.replace: no fact is called"):
        stream.replace(Request("{} is", "somebody", "else"))


# ------------------------------------------------------------------------------ conflicts


def test_conflicts_are_reported_before_anything_is_written(tmp_path):
    stream = begun(tmp_path / "stream")
    requests = some_requests(2)
    stream.add(requests)
    before = {file: file.read_bytes() for file in (tmp_path / "stream").iterdir()}
    again = replace(requests[0], target="lead")
    named = replace(requests[1], subject="Somebody Else", name=requests[1].label)
    new = Request("The new home of {} is", "Nobody", "Rome")
    kinds = {(c.first, c.second): c.kind for c in stream.conflicts([again, named, new])}
    assert kinds[requests[0].label, again.label] == "same"
    assert kinds[requests[1].label, named.label] == "same"
    with pytest.raises(LanguageError, match=r"1 requests are about what the stream has already"):
        stream.add([new, again])
    assert {file: file.read_bytes() for file in (tmp_path / "stream").iterdir()} == before
    assert stream.requests() == requests


def test_relations_of_one_subject_have_parallel_keys():
    stream = begun()
    first = Request("{} plays the", "Miles Davis", "piano")
    second = Request("{} was born in", "Miles Davis", "Rome")
    (conflict,) = stream.conflicts([first, second])
    assert conflict.kind == "parallel"
    assert conflict.cosine > 0.999
    assert (conflict.first, conflict.second) == (first.label, second.label)
    with pytest.warns(rk.RankeditWarning, match="1 pairs of facts have nearly parallel keys"):
        stream.add([first, second])
    assert stream.conflicts([], threshold=0.5) == []


# ------------------------------------------------------------------------------ folders


def test_a_folder_is_the_stream(tmp_path):
    folder = tmp_path / "stream"
    stream, facts = begun(folder), known()
    stream.enter(part(facts, [0, 1, 2]))
    stream.enter(part(facts, [3, 4]))
    stream.undo(facts.requests[1].label)
    again = begun(folder, method=None, layers=None)  # the folder knows
    assert again.requests() == stream.requests()
    assert again.engine.settings == stream.engine.settings
    assert again.engine.prefixes == PREFIXES
    for name, edit in stream.edits().items():
        assert torch.equal(edit.delta(), again.edits()[name].delta())
    stream.undo(facts.requests[3].label, facts.requests[4].label)
    assert [f.name for f in sorted(folder.iterdir())] == [
        "facts-000000.safetensors",
        "stream.json",
        "stream.lock",
    ]
    width = sum(key.shape[1] for key in [*facts.keys.values(), *facts.lacking.values()])
    assert (folder / "facts-000000.safetensors").stat().st_size < 3 * 4 * width + 1024


@pytest.mark.parametrize("at", ["facts", "manifest"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_crash_while_adding_loses_one_batch_at_most(tmp_path, monkeypatch, at, count):
    monkeypatch.setattr("rankedit_recipes.language.streams.stream._CHUNK", 1)
    folder, requests = tmp_path / "stream", some_requests(4)
    stream = begun(folder)
    calls = []

    def crashing(function):
        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) > count:
                raise RuntimeError("power cut")
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if at == "facts":
            patch.setattr("rankedit_recipes.language.streams.folder.rk.save", crashing(rk.save))
        else:
            patch.setattr(Folder, "write", crashing(Folder.write))
        with pytest.raises(RuntimeError, match="power cut"):
            stream.add(requests)
    resumed = begun(folder)
    assert resumed.requests() == requests[:count]
    assert resumed.add(requests) == [r.label for r in requests[count:]]
    whole = begun()
    whole.add(requests)
    assert resumed.requests() == whole.requests()
    assert same(begun(folder).edits(), whole.edits(), 1e-5)


def test_folders_of_something_else_are_refused(tmp_path):
    folder = tmp_path / "stream"
    begun(folder).enter(part(known(), [0]))
    _, names, statistics = small("llama")
    changed = {n: m.clone().update(torch.ones(1, m.dim)) for n, m in statistics.items()}
    with pytest.raises(LanguageError, match="a stream of edits of another statistics"):
        begun(folder, statistics=changed)
    other, _ = family("llama")
    other.get_submodule(names[0]).weight.data += 0.1
    with pytest.raises(LanguageError, match="a stream of edits of another model"):
        Stream.open(folder, other, tokenizer(), statistics=statistics, progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_text("x")
    with pytest.raises(LanguageError, match="holds something else than a stream"):
        begun(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    assert len(begun(tmp_path / "empty")) == 0


def test_damaged_folders_are_refused(tmp_path):
    folder = tmp_path / "stream"
    begun(folder).enter(part(known(), [0, 1]))
    manifest, data = folder / "stream.json", folder / "facts-000000.safetensors"
    whole, rows = manifest.read_text(), data.read_bytes()
    document = json.loads(whole)
    for damage in (
        whole[: len(whole) // 2],
        "[]",
        json.dumps({**document, "version": 9}),
        json.dumps({**document, "settings": {"method": "x", "speed": 1}}),
        json.dumps({**document, "facts": [{**document["facts"][0], "place": [-1, 0]}]}),
        json.dumps({**document, "facts": [{**document["facts"][0], "prompt": "none"}]}),
    ):
        manifest.write_text(damage)
        with pytest.raises(LanguageError, match="is damaged or of another version"):
            begun(folder)
    manifest.write_text(whole)
    data.write_bytes(rows[:-3])
    with pytest.raises(LanguageError, match=r"Stream\.edits: .* cannot be read"):
        begun(folder).edits()
    rk.save({"a": torch.ones(2)}, data)
    with pytest.raises(LanguageError, match=r"must hold .*'keys\.0'.*, got"):
        begun(folder).edits()
    data.unlink()
    with pytest.raises(LanguageError, match=r"Stream\.edits: .* cannot be read"):
        begun(folder).edits()


def test_the_published_fault_has_no_stream():
    with pytest.raises(LanguageError, match="edits one fact at a time"):
        Stream(replace(begun(method="rome").engine, settings=quick("rome", consistent=False)))


def test_edits_of_a_stream_are_edits(tmp_path):
    stream = begun()
    stream.enter(known())
    rk.save(stream.edits(), tmp_path / "edits.safetensors", model=stream.engine.model)
    loaded = rk.load(tmp_path / "edits.safetensors")
    assert all(relative(loaded[n].delta(), e.delta()) < 1e-6 for n, e in stream.edits().items())
