"""Several writers of one stream: none loses a fact, and who is behind is refused."""

import errno
import fcntl
import os
import shutil
import threading

import pytest
from rankedit_recipes.language import LanguageError
from rankedit_recipes.language.streams import locking, pages
from rankedit_recipes.language.streams.folder import Folder

from tests.language.stand_in import (
    Drawn,
    attack,
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


# Fifty are a study: `ROUNDS=50 pytest -m slow` of this file.
MANY = int(os.environ.get("ROUNDS", "6"))


@pytest.mark.parametrize("count", [1, pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def test_two_processes_add_all_of_their_facts_or_one_is_refused(tmp_path, count):
    assert attack("race", tmp_path, count)["found"] == {"[0, 3], right True, whole False": count}
    retried = attack("retry", tmp_path / "again", count)["found"]
    assert retried == {"[0, 0], right True, whole True": count}


def test_a_stale_handle_is_refused_with_the_remedy(tmp_path):
    begun(tmp_path)
    first, second = opened(tmp_path), opened(tmp_path)
    first.add([request(7)])
    # Before anything is searched for: that may take an hour.
    search = pytest.MonkeyPatch()
    search.setattr(Drawn, "facts", None)
    before, held = files(tmp_path), state(second)
    again = r"was changed since it was opened here.*nothing was written\. Open it again with Stream"
    for call, change in (
        ("add", lambda: second.add([request(8)])),
        ("enter", lambda: second.enter(facts_of([request(8)]))),
        ("undo", lambda: second.undo("fact 0")),
        ("replace", lambda: second.replace(request(0, "tin"))),
    ):
        with pytest.raises(LanguageError, match=rf"Stream\.{call}: .*{again}"):
            change()
    search.undo()
    assert files(tmp_path) == before
    assert state(second) == held
    # What comes and goes again leaves another generation behind.
    third = opened(tmp_path)
    first.add([request(9)])
    first.undo("fact 9")
    assert state(third) == state(first)
    with pytest.raises(LanguageError, match=again):
        third.add([request(8)])
    opened(tmp_path).add([request(8)])
    assert kept(tmp_path) == kept_of([request(n) for n in (0, 1, 2, 3, 7, 8)])


def test_a_stream_that_another_process_begins_meanwhile_is_opened(tmp_path, monkeypatch):
    empty = Folder._is_empty

    def late(folder):
        # Between the look for `stream.json` and the look at what else is there.
        monkeypatch.setattr(Folder, "_is_empty", empty)
        begun(tmp_path)
        return folder._is_empty()

    monkeypatch.setattr(Folder, "_is_empty", late)
    opened(tmp_path).add([request(8)])
    assert kept(tmp_path) == kept_of([request(n) for n in (0, 1, 2, 3, 8)])


def test_a_folder_that_another_stream_took_is_refused(tmp_path):
    stream = begun(tmp_path / "a")
    begun(tmp_path / "b").undo()
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        stream.undo()
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(LanguageError, match="was changed since it was opened"):
        stream.undo()
    (tmp_path / "a" / "stream.json").unlink()
    with pytest.raises(LanguageError, match="was changed since it was opened"):
        stream.undo()
    # Nothing is swept where nothing says what belongs there.
    assert "facts-000000.safetensors" in files(tmp_path / "a")
    with pytest.raises(LanguageError, match="holds something else than a stream"):
        opened(tmp_path / "a")


def test_threads_share_a_stream(tmp_path):
    stream = begun(tmp_path)
    failed = []

    def add(who):
        try:
            for number in range(5):
                stream.add([request(f"{who}-{number}")])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=add, args=(who,)) for who in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(stream) == 19
    assert kept(tmp_path) == kept_of(stream.requests())
    assert state(stream) == state_of(stream.requests())


def test_a_lock_that_is_held_or_missing_is_told(tmp_path, monkeypatch):
    stream = begun(tmp_path)
    monkeypatch.setattr(locking, "_PATIENCE", 0.1)
    before = state(stream)
    with (tmp_path / "stream.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LanguageError, match=r"has held '.*stream\.lock' for .*Wait until it"):
            stream.undo()
        # Readers need none.
        assert state(opened(tmp_path)) == before

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(locking.fcntl, "flock", none)
        with pytest.raises(
            LanguageError, match=r"cannot be locked \(No locks available\).*keep the"
        ):
            stream.undo()
    with monkeypatch.context() as patch:
        patch.setattr(locking, "fcntl", None)
        with pytest.raises(
            LanguageError, match=r"operating system lacks; keep the stream in memory"
        ):
            stream.undo()
    # A lock that was removed while somebody waits for it is not the lock any more.
    monkeypatch.setattr(locking, "_PATIENCE", 60.0)
    with (tmp_path / "stream.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (tmp_path / "stream.lock").unlink()
        stream.undo()
    assert stream.names() == ["fact 0", "fact 1", "fact 2"]


def test_a_reader_sees_one_stream_while_another_writes(tmp_path, monkeypatch):
    begun(tmp_path)
    load, calls = pages.name_of, []

    def undoing(folder, number):
        # Between reading `stream.json` and its files, these files go.
        if not calls:
            calls.append(1)
            opened(tmp_path).undo("fact 0", "fact 1")
        return folder.path / load(number)

    monkeypatch.setattr(Folder, "_file", undoing)
    assert state(opened(tmp_path)) == state_of([request(2), request(3)])
    assert calls
