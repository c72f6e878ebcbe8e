"""Changes of a stream that are killed, or meet a full disk or Ctrl-C: whole, or not at all."""

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
from rankedit_recipes.language import LanguageError
from rankedit_recipes.language.streams import locking

from tests.language.stand_in import (
    KINDS,
    Change,
    attack,
    begun,
    document_of,
    draws,
    files,
    kept,
    kept_of,
    opened,
    request,
    state,
    state_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


# Hundreds are a study: `MOMENTS=200 pytest -m slow` of this file.
MANY = int(os.environ.get("MOMENTS", "60"))


@pytest.mark.parametrize("count", [12, pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def test_killed_while_it_changes_a_stream_is_what_it_was_or_was_to_be(tmp_path, count):
    report = attack("kill", tmp_path / "stream", count)
    assert set(report["found"]) <= {"before", "after"}
    assert sum(report["found"].values()) == count
    assert report["left"] == ["stream.json", "stream.lock"]
    if count >= 60:
        # The killings hit writers at work.
        assert report["litter"] > 0
        assert min(report["found"].values()) > 0


class Failing:
    """A function that fails at its n-th call, or from there on."""

    def __init__(self, function, at, *, once):
        self.function, self.at, self.once, self.calls = function, at, once, 0

    def __call__(self, *args, **options):
        self.calls += 1
        if self.calls == self.at or (not self.once and self.calls > self.at):
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.function(*args, **options)


class Pattern:
    """A folder that is begun once, and copied for each trial: syncing takes most of the time."""

    def __init__(self, folder, count=4):
        begun(folder / "pattern", count)
        self.folder, self.number = folder, 0

    def opened(self):
        self.number += 1
        copy = self.folder / str(self.number)
        shutil.copytree(self.folder / "pattern", copy)
        return copy, opened(copy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("what", "step"),
    [
        ((os, "fsync"), 1),
        ((Path, "replace"), 1),
        ((os, "open"), 5),
        pytest.param((os, "open"), 2, marks=pytest.mark.slow),
    ],
    ids=["fsync", "replace", "open", "more of open"],
)
def test_a_full_disk_changes_nothing_and_the_next_try_works(
    tmp_path, monkeypatch, kind, once, what, step
):
    pattern, failures, calls, at = Pattern(tmp_path), 0, 0, 0
    if what[1] != "fsync":
        monkeypatch.setattr(os, "fsync", lambda _: None)  # it takes most of the time
    while at <= calls:
        at += step
        folder, stream = pattern.opened()
        before, change = state(stream), Change(kind, stream.requests(), draws(at))
        failing = Failing(getattr(*what), at, once=once)
        with monkeypatch.context() as patch:
            # A function, which is bound as a method of what it is called on.
            patch.setattr(*what, lambda *args, f=failing, **options: f(*args, **options))
            try:
                change.do(stream)
            except (OSError, LanguageError):
                failures += 1
        calls = failing.calls
        if state(stream) != state(opened(folder)):
            # Not even that the new name is there could be seen.
            assert not once
            with pytest.raises(LanguageError, match="Open it again"):
                stream.add([request("next")])
            stream = opened(folder)
        # Behind the new name comes only what makes it durable, and what removes the old.
        assert state(stream) in (before, state_of(change.after))
        if state(stream) == before:
            change.do(stream)
        assert state(stream) == state(opened(folder)) == state_of(change.after)
        assert kept(folder) == kept_of(change.after)
        stream.add([request("next")])
        assert set(files(folder)) - {"stream.json", "stream.lock"} == set(
            document_of(folder)["files"]
        )
    assert failures > 0


def interrupted(change, stream, at, watched):
    """Do a change with a Ctrl-C at the n-th line; gives how many lines there were until then."""
    lines = 0

    def trace(frame, event, _argument):
        nonlocal lines
        if not frame.f_code.co_filename.endswith(watched):
            return None
        if event == "line":
            lines += 1
            if lines == at:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        change.do(stream)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return lines


@pytest.mark.parametrize("kind", KINDS)
# The trace raises in finalisers as well, where Python only tells of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", [37, pytest.param(13, marks=pytest.mark.slow)])
def test_ctrl_c_anywhere_leaves_memory_and_disk_as_one(tmp_path, monkeypatch, kind, step):
    """Whatever line it comes at; a handle that is behind the disk is refused, never believed."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power cut here
    monkeypatch.setattr(locking, "_PATIENCE", 1.0)
    watched = tuple(
        f"streams{os.sep}{n}.py" for n in ("folder", "held", "kept", "reading", "stream", "locking")
    )
    watched += ("ledger.py", "atomic.py", "interrupt.py")
    pattern, at, lines, refused = Pattern(tmp_path, 3), 0, 1, 0
    while at <= lines:
        at += step
        folder, stream = pattern.opened()
        before, change = state(stream), Change(kind, stream.requests(), draws(at))
        lines = interrupted(change, stream, at, watched)
        disk = state(opened(folder))
        assert disk in (before, state_of(change.after))
        try:
            stream.add([request("next")])
        except LanguageError as error:
            refused += 1
            if "pen it again" not in str(error):
                raise
        else:
            assert state(stream) == state_of([*disk[0], request("next")])
        there, _ = kept(folder)
        assert there[: len(disk[0])] == disk[0]
        assert kept(folder) == kept_of(there)
        shutil.rmtree(folder)
    assert at > 200
    # Between the new name and the change in memory, which is whole or not at all, are few lines.
    assert refused <= 2 + 20 // step


def test_what_cannot_be_removed_now_is_removed_at_the_next_change(tmp_path, monkeypatch):
    stream, unlink = begun(tmp_path), Path.unlink

    def refusing(path, **options):
        if path.name.startswith("facts-"):
            raise PermissionError("no")
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refusing)
        stream.undo("fact 3")
    assert "facts-000002.safetensors" in files(tmp_path)
    assert len(opened(tmp_path)) == 3
    stream.undo("fact 2")
    assert set(files(tmp_path)) == {"facts-000000.safetensors", "stream.json", "stream.lock"}


def test_numbers_are_never_used_again(tmp_path):
    stream = begun(tmp_path)
    assert set(document_of(tmp_path)["files"]) == {f"facts-00000{n}.safetensors" for n in range(3)}
    stream.undo("fact 3")
    stream.add([request(4)])
    assert "facts-000003.safetensors" in document_of(tmp_path)["files"]
    # What a killed addition leaves is neither read nor written over, and goes with the next change.
    (tmp_path / "facts-000004.safetensors").write_text("litter")
    (tmp_path / "facts-notes.txt").write_text("mine")
    assert len(opened(tmp_path)) == 4
    stream.undo("fact 4")
    assert document_of(tmp_path)["next"] == 5
    assert "facts-000004.safetensors" not in files(tmp_path)
    stream.add([request(5)])
    assert "facts-000005.safetensors" in document_of(tmp_path)["files"]
    stream.undo(*stream.names())
    opened(tmp_path).add([request(6)])
    assert list(document_of(tmp_path)["files"]) == ["facts-000006.safetensors"]
    assert (tmp_path / "facts-notes.txt").read_text() == "mine"


def test_a_folder_whose_beginning_was_killed_is_begun(tmp_path):
    (tmp_path / "stream.lock").touch()
    (tmp_path / ".stream.json.12345678-aabbccdd.rankedit-tmp").write_text("{")
    assert len(opened(tmp_path)) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "stream.lock").touch()
    (tmp_path / "other" / "facts-000000.safetensors").touch()
    with pytest.raises(LanguageError, match="holds something else than a stream"):
        opened(tmp_path / "other")
