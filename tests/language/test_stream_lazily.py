"""Opening a stream reads `stream.json`; the rest is read, and held to its digest, when needed."""

import json

import pytest
from rankedit_recipes.language import LanguageError
from rankedit_recipes.language.streams import pages, reading

import rankedit as rk
from tests.language.stand_in import (
    NAMES,
    begun,
    facts_of,
    files,
    kept,
    kept_of,
    opened,
    request,
    state,
    state_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(pages, "SEALED_AT", 2)


@pytest.fixture
def looked(monkeypatch):
    """Names of what is read, file by file."""
    names = []

    def noting(module, name, file_of):
        original = getattr(module, name)

        def reads(*arguments, **options):
            names.append(file_of(*arguments).name)
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, reads)

    noting(reading, "open_regular", lambda path: path)
    noting(pages, "open_regular", lambda path: path)
    noting(reading, "load_rows", lambda path, *_: path)
    return names


def kinds(looked):
    found = {name.split("-")[0].split(".")[0] for name in looked}
    looked.clear()
    return found


def many(folder):
    """Facts in a page, of three files, and one in `stream.json`."""
    begun(folder).add([request(4)])


@pytest.mark.parametrize(
    ("use", "reads"),
    [
        (lambda stream: None, set()),
        (len, {"page"}),
        (lambda stream: "fact 1" in stream, {"page"}),
        (lambda stream: stream.names(), {"page"}),
        (lambda stream: stream.requests(), {"page"}),
        (lambda stream: stream.undo("fact 1"), {"page"}),
        (lambda stream: stream.undo(), {"page"}),
        (lambda stream: stream.replace(request(1, "tin")), {"page"}),
        (lambda stream: stream.enter(facts_of([request(9)])), {"page"}),
        (lambda stream: stream.add([request(1)]), {"page"}),
        (lambda stream: stream.conflicts([request(9)]), {"page", "facts"}),
        (lambda stream: stream.add([request(9)]), {"page", "facts"}),
        (lambda stream: stream.edits(), {"page", "facts"}),
        (lambda stream: stream.attach(), {"page", "facts"}),
        (lambda stream: stream.check(), {"page", "facts"}),
    ],
)
def test_what_is_read_is_what_is_needed(tmp_path, looked, use, reads):
    many(tmp_path)
    looked.clear()
    stream = opened(tmp_path)
    assert kinds(looked) == {"stream"}
    use(stream)
    assert kinds(looked) - {"stream"} == reads


def test_what_is_read_is_read_once(tmp_path, looked):
    many(tmp_path)
    stream = opened(tmp_path)
    state(stream)
    looked.clear()
    state(stream)
    stream.names()
    assert looked == []
    # But a check is of the disk as it is now.
    stream.check()
    assert {name.split("-")[0] for name in looked} == {"stream.json", "page", "facts"}


def test_changes_before_keys_are_read_equal_changes_after(tmp_path):
    changes = (
        (lambda stream: stream.undo("fact 1"), [0, 2, 3, 4]),
        (lambda stream: stream.enter(facts_of([request(7)])), [0, 2, 3, 4, 7]),
        (lambda stream: stream.undo("fact 2", "fact 7"), [0, 3, 4]),
        (lambda stream: stream.enter(facts_of([request(8), request(2)])), [0, 3, 4, 8, 2]),
    )
    many(tmp_path)
    unread, read = opened(tmp_path), []
    for change, numbers in changes:
        change(unread)
        read = [request(number) for number in numbers]
        assert unread.requests() == read
        assert kept(tmp_path) == kept_of(read)
    assert state(unread) == state_of(read) == state(opened(tmp_path))


def test_damage_is_found_where_it_is_used_and_does_not_spread(tmp_path):
    many(tmp_path)
    whole = files(tmp_path)
    broken = "facts-000001.safetensors"
    data = bytearray(whole[broken])
    data[-1] ^= 1
    (tmp_path / broken).write_bytes(data)
    stream = opened(tmp_path)
    assert stream.names() == [f"fact {number}" for number in range(5)]
    said = rf"{broken}' .*damaged"
    for _ in range(2):
        with pytest.raises(LanguageError, match=rf"Stream\.edits: .*{said}"):
            stream.edits()
        with pytest.raises(LanguageError, match=rf"Stream\.check: .*{said}"):
            stream.check()
    before = files(tmp_path)
    with pytest.raises(LanguageError, match=rf"Stream\.conflicts: .*{said}"):
        stream.add([request(9)])
    assert files(tmp_path) == before
    # What is damaged may be taken out: it is not read for that, and goes with its file.
    stream.undo("fact 2")
    assert broken not in files(tmp_path)
    assert state(stream) == state_of([request(n) for n in (0, 1, 3, 4)])


def test_a_check_sees_damage_of_what_was_read_before(tmp_path):
    many(tmp_path)
    stream = opened(tmp_path)
    right = state(stream)
    stream.check()
    for name, data in files(tmp_path).items():
        if name == "stream.lock":
            continue
        (tmp_path / name).write_bytes(data[:-2] + bytes(1 ^ b for b in data[-2:]))
        with pytest.raises(LanguageError, match=r"Stream\.check: "):
            stream.check()
        (tmp_path / name).write_bytes(data)
        stream.check()
    assert state(stream) == right
    opened().check()  # in memory there is nothing to read


def test_facts_that_were_seen_and_taken_out_meanwhile_are_refused(tmp_path):
    many(tmp_path)
    seen, unseen, apart = opened(tmp_path), opened(tmp_path), opened(tmp_path)
    names = seen.names()
    other = opened(tmp_path)
    # As long as the files are there, a stream is what it was.
    other.add([request(9)])
    assert apart.names() == names
    assert state(apart) == state_of([request(n) for n in range(5)])
    other.undo("fact 2")
    again = r"was changed since it was opened here.*Open it again with Stream\.open"
    with pytest.raises(LanguageError, match=rf"Stream\.edits: .*{again}"):
        seen.edits()
    assert seen.names() == names
    # Who has seen nothing yet opens it as it is now, and may go on with it.
    assert state(unseen) == state(other)
    unseen.undo("fact 9")
    assert kept(tmp_path) == kept_of([request(n) for n in (0, 1, 3, 4)])
    with pytest.raises(LanguageError, match=rf"Stream\.check: .*{again}"):
        other.check()


def test_a_folder_that_became_another_stream_meanwhile_is_refused(tmp_path):
    many(tmp_path / "a")
    stream = opened(tmp_path / "a")
    other = tmp_path / "b"
    opened(other, prefixes=("A day. ",)).add([request(9)])
    for name in files(tmp_path / "a"):
        if name.startswith(("page", "facts")):
            (tmp_path / "a" / name).unlink()
    for name, data in files(other).items():
        (tmp_path / "a" / name).write_bytes(data)
    with pytest.raises(LanguageError, match=r"with the prefixes \['A day\. '\], got \[\]"):
        stream.edits()


def test_keys_are_not_read_for_an_edited_model(tmp_path):
    many(tmp_path)
    stream = opened(tmp_path)
    edits = opened(tmp_path).edits()
    with rk.attach(stream.engine.model, edits):
        assert len(stream) == 5
        with pytest.raises(LanguageError, match=r"Stream\.edits: .*attached edits: 1.*detach"):
            stream.edits()
    with stream.attach():
        assert set(stream.edits()) == set(NAMES)


def test_a_page_says_where_it_must_end(tmp_path):
    """The number that no file has is above those in pages, too, which are read later."""
    many(tmp_path)
    document = json.loads((tmp_path / "stream.json").read_text())
    (name,) = document["pages"]
    assert document["next"] > pages.page_number_of(name)
    head = reading.Reader(tmp_path).head()
    assert [page.number for page in head.unread] == [pages.page_number_of(name)]
    assert len(head.requests) < 5
    whole = reading.Reader(tmp_path).whole(head)
    assert [r.label for r in whole.requests] == opened(tmp_path).names()
