"""Large streams: facts in pages that never change, with all that holds for small ones."""

import json

import pytest
from rankedit_recipes.language import LanguageError
from rankedit_recipes.language.commands import tasks
from rankedit_recipes.language.streams import folder as folders
from rankedit_recipes.language.streams import pages

import rankedit as rk
from tests.language.stand_in import (
    KINDS,
    Change,
    begun,
    document_of,
    draws,
    files,
    kept,
    kept_of,
    opened,
    refused,
    request,
    state,
    state_of,
    write,
)

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pages, "SEALED_AT", 2)


def test_changes_of_every_kind_leave_what_a_small_stream_has(tmp_path):
    draw, requests = draws(3), []
    stream, most = opened(tmp_path), 0
    for number in range(24):
        kind = "add" if len(requests) < 5 else KINDS[number % 3]
        change = Change(kind, requests, draw)
        change.do(stream)
        requests = change.after
        assert stream.requests() == requests
        # Of another process, who sees the disk only.
        assert kept(tmp_path) == kept_of(requests)
        if number % 11 == 0:
            assert state(opened(tmp_path)) == state(stream) == state_of(requests)
            stream = opened(tmp_path)
        document = document_of(tmp_path)
        assert len(document["facts"]) <= 2
        most = max(most, len(document.get("pages", {})))
    assert most > 1
    # Nothing is left of what nobody needs, and nothing is missing.
    numbered = {name for name in files(tmp_path) if name.startswith(("page-", "facts-"))}
    used = set(document["pages"]) | set(document["files"])
    for name in document["pages"]:
        used |= set(json.loads((tmp_path / name).read_text())["files"]) & numbered
    assert numbered == used
    listed = "\n".join(tasks.listed(tmp_path, ""))
    assert all(each.label in listed for each in requests)
    stream.undo(*stream.names())
    assert set(files(tmp_path)) == {"stream.json", "stream.lock"}
    assert document_of(tmp_path)["version"] == 2


def test_small_streams_are_written_as_before(tmp_path):
    stream = opened(tmp_path)
    stream.add([request(0), request(1)])
    document = document_of(tmp_path)
    assert document["version"] == 2
    assert "pages" not in document
    stream.add([request(2)])
    assert document_of(tmp_path)["version"] == 3


def test_flipped_bits_of_a_page_are_refused_or_change_nothing(tmp_path):
    stream, draw = begun(tmp_path), draws()
    stream.undo("fact 1")
    right, whole = state(stream), files(tmp_path)
    (name,) = [name for name in whole if name.startswith("page-")]
    for _ in range(30):
        data = bytearray(whole[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (tmp_path / name).write_bytes(data)
        refused(tmp_path, "damaged or of another version")
    (tmp_path / name).unlink()
    refused(tmp_path, "damaged or of another version")
    (tmp_path / name).write_bytes(whole[name])
    assert state(opened(tmp_path)) == right


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"gone": [9]}, "must be numbers of its facts"),
        ({"gone": [True]}, "must be numbers of its facts"),
        ({"gone": "1"}, "must be numbers of its facts"),
        ({"digest": "0" * 64}, "is not what the stream wrote"),
        ({"more": 1}, "pages must be names, digests and what is gone"),
    ],
)
def test_documents_that_no_stream_writes_are_refused_whoever_signed_them(tmp_path, entry, said):
    begun(tmp_path)
    document = document_of(tmp_path)
    ((name, page),) = document["pages"].items()
    write(tmp_path, {**document, "pages": {name: {**page, **entry}}})
    refused(tmp_path, said)
    write(tmp_path, {**document, "pages": {"page-1.json": page}})
    with pytest.raises(LanguageError, match="pages must be names"):
        opened(tmp_path)


def test_a_fact_stands_in_one_place_only(tmp_path):
    begun(tmp_path)
    document = document_of(tmp_path)
    ((name, page),) = document["pages"].items()
    twice = json.loads((tmp_path / name).read_text())
    write(tmp_path, {**document, "facts": twice["facts"][:1], "files": {}})
    refused(tmp_path, "are missing or of no fact")
    only = {n: d for n, d in twice["files"].items() if n == "facts-000000.safetensors"}
    write(tmp_path, {**document, "facts": twice["facts"][:1], "files": only})
    refused(tmp_path, "two facts have the same name")
    other = {**twice["facts"][0], "name": "x", "label": "x"}
    write(tmp_path, {**document, "facts": [other], "files": only})
    refused(tmp_path, "two facts have the same place")
    assert page["gone"] == []


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_leaves_the_stream_as_it_was(tmp_path, monkeypatch, at):
    stream = begun(tmp_path, 2)
    before, held, calls = files(tmp_path), state(stream), []

    def full(original):
        def writing(*arguments, **options):
            calls.append(1)
            if len(calls) == at:
                raise OSError(28, "No space left on device")
            return original(*arguments, **options)

        return writing

    with monkeypatch.context() as patch:
        patch.setattr(rk, "save", full(rk.save))
        patch.setattr(pages, "atomic_write", full(pages.atomic_write))
        patch.setattr(folders, "atomic_write", full(folders.atomic_write))
        with pytest.raises(OSError, match="No space left"):
            stream.add([request(7)])
    assert len(calls) == at
    assert files(tmp_path) == before
    assert state(stream) == held
    assert state(opened(tmp_path)) == held
    stream.add([request(7)])
    assert state(opened(tmp_path)) == state_of([request(n) for n in (0, 1, 7)])
