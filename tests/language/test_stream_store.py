"""The folder of a stream: two writers, kills, full disks, flipped bits, files that were swapped."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from rankedit_recipes.language import LanguageError, Request
from rankedit_recipes.language.commands import tasks
from rankedit_recipes.language.commands.remedies import REMEDIES
from rankedit_recipes.language.streams import locking, manifest
from rankedit_recipes.language.streams.folder import Folder

import rankedit as rk
from tests.language.stand_in import (
    IN,
    KINDS,
    NAMES,
    OUT,
    Change,
    begun,
    draws,
    facts_of,
    kept,
    kept_of,
    model_of,
    opened,
    request,
    state,
    state_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")
ROOT = Path(__file__).parents[2]


def attack(mode, folder, count):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = ROOT / "tests" / "language" / "attack_store.py"
    command = [sys.executable, str(script), mode, str(folder), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def document_of(folder):
    return json.loads((folder / "stream.json").read_text())


def write(folder, document, *, signed=True):
    """Put a document in the place of the folder's, with a digest of its own."""
    if signed:
        document = {**document, "digest": manifest._digest(document)}
    (folder / "stream.json").write_text(json.dumps(document))


# -------------------------------------------------------------------------------- several writers


@pytest.mark.parametrize("count", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_two_processes_add_all_of_their_facts_or_one_is_refused(tmp_path, count):
    assert attack("race", tmp_path, count)["found"] == {"[0, 3], right True, whole False": count}
    retried = attack("retry", tmp_path / "again", count)["found"]
    assert retried == {"[0, 0], right True, whole True": count}


def test_a_stale_handle_is_refused_with_the_remedy(tmp_path):
    begun(tmp_path)
    first, second = opened(tmp_path), opened(tmp_path)
    first.add([request(7)])
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
    load, calls = manifest.name_of, []

    def undoing(folder, number):
        # Between reading `stream.json` and its files, these files go.
        if not calls:
            calls.append(1)
            opened(tmp_path).undo("fact 0", "fact 1")
        return folder.path / load(number)

    monkeypatch.setattr(Folder, "_file", undoing)
    assert state(opened(tmp_path)) == state_of([request(2), request(3)])
    assert calls


# -------------------------------------------------------------------------------------- crashes


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_while_it_changes_a_stream_is_what_it_was_or_was_to_be(tmp_path, count):
    report = attack("kill", tmp_path / "stream", count)
    assert set(report["found"]) <= {"before", "after"}
    assert sum(report["found"].values()) == count
    assert report["left"] == ["stream.json", "stream.lock"]
    if count > 100:
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
        pytest.param((os, "open"), 1, marks=pytest.mark.slow),
    ],
    ids=["fsync", "replace", "open", "every open"],
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
@pytest.mark.parametrize("step", [37, pytest.param(3, marks=pytest.mark.slow)])
def test_ctrl_c_anywhere_leaves_memory_and_disk_as_one(tmp_path, monkeypatch, kind, step):
    """Whatever line it comes at; a handle that is behind the disk is refused, never believed."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power cut here
    monkeypatch.setattr(locking, "_PATIENCE", 1.0)
    watched = tuple(f"streams{os.sep}{n}.py" for n in ("folder", "held", "stream", "locking"))
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


# ------------------------------------------------------------------------------- what was changed


@pytest.mark.parametrize("count", [75, pytest.param(300, marks=pytest.mark.slow)])
def test_flipped_bits_are_refused_or_change_nothing(tmp_path, count):
    folder, draw = tmp_path / "stream", draws()
    stream = begun(folder)
    stream.undo("fact 1")
    right, whole = state(stream), files(folder)
    assert {name: len(data) for name, data in whole.items() if not data} == {"stream.lock": 0}
    names = [name for name, data in whole.items() if data]
    assert len(names) == 4
    refused = 0
    for name in count * names:
        data = bytearray(whole[name])
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(data)
        try:
            assert state(opened(folder)) == right
        except rk.RankeditError:
            refused += 1
        (folder / name).write_bytes(whole[name])
    # White space between fields is all that may be another.
    assert refused > 0.9 * count * len(names)
    assert state(opened(folder)) == right


def test_files_that_belong_elsewhere_are_refused(tmp_path):
    folder = tmp_path / "stream"
    begun(folder)
    begun(tmp_path / "other").replace(request(2, "tin"))
    whole = files(folder)
    third, fourth = (folder / f"facts-00000{n}.safetensors" for n in (1, 2))
    refused = pytest.raises(LanguageError, match=r"is not what the stream wrote.*from a copy")
    third.write_bytes(whole[fourth.name])
    fourth.write_bytes(whole[third.name])
    with refused:
        opened(folder)
    fourth.write_bytes(whole[fourth.name])
    third.write_bytes((tmp_path / "other" / "facts-000003.safetensors").read_bytes())
    with refused:
        opened(folder)
    third.write_bytes(whole[third.name])
    assert len(opened(folder)) == 4


def two_places(document):
    document["facts"][1]["place"] = document["facts"][0]["place"]


def other_order(document):
    document["layers"].reverse()


def all_in_other_order(document):
    for name in ("base", "metrics"):
        document[name] = dict(reversed(document[name].items()))
    document["layers"].reverse()


def renamed(document):
    document["facts"][0]["label"] = "another"


def without_base(document):
    del document["base"]


def unknown_field(document):
    document["speed"] = 1


def place_of(value):
    def change(document):
        document["facts"][0]["place"] = value

    return change


HAND_MADE = [two_places, other_order, all_in_other_order, renamed, without_base, unknown_field]
HAND_MADE += [place_of([True, 0]), place_of([0, -1]), place_of([0, 9]), place_of([0.0, 0])]
HAND_MADE += [place_of("00"), place_of([0])]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("change", HAND_MADE)
def test_documents_that_no_stream_writes_are_refused_whoever_signed_them(tmp_path, version, change):
    begun(tmp_path)
    document = document_of(tmp_path) if version == 2 else as_version_1(tmp_path)
    change(document)
    write(tmp_path, document, signed=version == 2)
    with pytest.raises(LanguageError, match=r"damaged|another order of proj|row 9 of a file"):
        opened(tmp_path)
    if version == 2:
        write(tmp_path, document, signed=False)
        with pytest.raises(LanguageError, match=r"missing or unknown|does not match its digest"):
            opened(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"facts":', '"facts": [], "facts":', "it names 'facts' twice"),
        ('"piano"', '"piano", "target": "tin"', "it names 'target' twice"),
        ('"next": 3', '"next": 1e999', "not JSON compliant"),
        ('"next": 3', '"next": Infinity', "it holds Infinity, which is not JSON"),
        ('"next": 3', '"next": NaN', "it holds NaN"),
        ('"next": 3', '"next": ' + "9" * 5000, "it is not valid JSON"),
        ('"next": 3', '"next": ' + "[" * 100_000, "it is nested too deeply"),
        ('"next": 3', '"next": ' + "[" * 300 + "]" * 300, "does not match its digest"),
        ('"next": 3', '"next": 2', "does not match its digest"),
        ('"version": 2', '"version": 1', "missing or unknown fields"),
        ('"version": 2', '"version": true', "version True, expected 2"),
        ('"version": 2', '"version": [2]', r"version \[2\], expected 2"),
        ("{", "\xff{", "it must be UTF-8"),
        ("{", "[{", "it is not valid JSON"),
    ],
)
def test_text_that_is_no_strict_json_is_refused(tmp_path, old, new, said):
    begun(tmp_path)
    file = tmp_path / "stream.json"
    text = file.read_text()
    assert old in text
    file.write_bytes(text.replace(old, new, 1).encode("latin-1"))
    with pytest.raises(LanguageError, match=rf"is damaged or of another version: .*{said}"):
        opened(tmp_path)
    with pytest.raises(LanguageError, match=said):
        list(tasks.listed(tmp_path, ""))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    begun(tmp_path)
    (tmp_path / "stream.json").unlink()
    os.mkfifo(tmp_path / "stream.json")
    with pytest.raises(LanguageError, match="cannot be read: it is not a regular file"):
        opened(tmp_path)


# ------------------------------------------------------------------------- the model, and the past


def fused(stream):
    rk.fuse_(stream.engine.model, stream.edits())


def attached(stream):
    stream.attach()


def hidden(stream):
    """An edit with a dead zone, which no input but its key gets out of."""
    key, value = torch.full((1, IN), 100.0), torch.ones(1, OUT)
    edit = rk.GatedEdit(key, value, rk.Metric.identity(IN), normalised=True, floor=0.999)
    rk.attach(stream.engine.model, {"low": edit})


def adapted(stream):
    """Something that is no edit of this library, and leaves the weights as they are."""

    low = stream.engine.model["low"]
    forward = low.forward
    low.forward = lambda x: forward(x) + 0.01 * x[..., :OUT]


def one_weight(stream):
    stream.engine.model["high"].weight.data[1, 2] *= 1 + 1e-6


def half(stream):
    stream.engine.model["low"].weight.data = stream.engine.model["low"].weight.data.half().float()


@pytest.mark.parametrize("edited", [fused, attached, hidden, adapted, one_weight, half])
@pytest.mark.parametrize("memory", [True, False])
def test_no_change_is_made_to_a_model_that_is_another(tmp_path, edited, memory):
    stream = begun(None if memory else tmp_path)
    model = stream.engine.model
    before = files(tmp_path)
    edited(stream)
    for call, change in (
        ("enter", lambda: stream.enter(facts_of([request(8)]))),
        ("undo", lambda: stream.undo("fact 0")),
        ("undo", stream.undo),
        ("replace", lambda: stream.replace(request(0, "tin"))),
        ("conflicts", lambda: stream.add([request(8)])),
    ):
        with pytest.raises(LanguageError, match=rf"Stream\.{call}: '.*' no longer gives what it"):
            change()
    assert stream.names() == [f"fact {number}" for number in range(4)]
    assert files(tmp_path) == before
    if edited in (fused, attached, hidden):
        rk.unfuse_(model) if edited is fused else rk.detach_all(model)
        assert stream.undo("fact 0") == [request(0)]
        if not memory:
            assert state(stream) == state(opened(tmp_path))


def test_an_edited_model_does_not_open_a_stream(tmp_path):
    stream = begun(tmp_path)
    model, edits = model_of(), stream.edits()
    with (
        rk.attach(model, edits),
        pytest.raises(LanguageError, match=r"Stream\.open: .*\(attached edits: 1"),
    ):
        opened(tmp_path, model=model)
    rk.fuse_(model, edits)
    with pytest.raises(LanguageError, match="a stream of edits of another model"):
        opened(tmp_path, model=model)


def test_engines_of_other_settings_or_texts_are_refused(tmp_path):
    begun(tmp_path)
    with pytest.raises(LanguageError, match="by the method memit, got emmet"):
        opened(tmp_path, method="emmet")
    with pytest.raises(LanguageError, match=r"with the prefixes \[\], got \['One\. '\]"):
        opened(tmp_path, prefixes=("One. ",))


def test_a_request_does_not_take_the_place_of_two_facts(tmp_path):
    stream = begun(tmp_path)
    both = Request("{} plays the", "Subject 1", "tin", name="fact 0")
    with pytest.raises(
        LanguageError, match="'fact 1' has the same subject and relation; undo that"
    ):
        stream.replace(both)
    stream.undo("fact 1")
    assert stream.replace(both) == request(0)
    assert kept(tmp_path) == kept_of([request(2), request(3), both])


def test_facts_that_cannot_be_entered_leave_no_trace(tmp_path):
    stream = begun(tmp_path)
    before, whole = state(stream), files(tmp_path)
    with pytest.raises(rk.SolveError, match="'fact 1' is in the stream already; use replace"):
        stream.enter(facts_of([request(8), request(1)]))
    for name in NAMES:
        for width in (1, 3):
            wrong = facts_of([request(8)])
            wrong.lacking[name] = wrong.lacking[name][:, :width]
            with pytest.raises(rk.ShapeError, match=f"Stream.enter: lacking of '{name}' must"):
                stream.enter(wrong)
        wrong = facts_of([request(8)])
        del wrong.keys[name]
        with pytest.raises(rk.ShapeError, match=f"Stream.enter: keys of '{name}' must"):
            stream.enter(wrong)
        wrong = facts_of([request(8)])
        wrong.keys[name][0, 0] = float("nan")
        with pytest.raises(rk.ShapeError, match="finite"):
            stream.enter(wrong)
    torn = Request("{} plays the", "Subject \ud800", "tin")
    with pytest.raises(LanguageError, match="must be such as JSON in UTF-8 can hold"):
        stream.enter(facts_of([torn]))
    assert (state(stream), files(tmp_path)) == (before, whole)


def as_version_1(folder):
    """The folder's document as version 1 had it."""
    document = document_of(folder)
    for name in ("digest", "generation", "next", "files"):
        del document[name]
    return {**document, "version": 1}


def test_folders_of_version_1_are_opened_and_upgraded_at_the_next_change(tmp_path):
    stream = begun(tmp_path)
    old = as_version_1(tmp_path)
    # As a version of this recipe wrote it that knew fewer settings.
    assert old["settings"].pop("tokens") == 8192
    write(tmp_path, old, signed=False)
    (tmp_path / "stream.lock").unlink()
    (tmp_path / "facts-000003.safetensors").write_text("left by a crash")
    before = files(tmp_path)
    again = opened(tmp_path)
    assert state(again) == state(stream)
    assert files(tmp_path) == before
    again.undo("fact 0")
    new = document_of(tmp_path)
    assert (new["version"], new["generation"], new["next"]) == (2, 1, 4)
    # What it began with is written back as it was read.
    for name in ("settings", "layers", "prefixes", "base", "metrics", "tokenizer"):
        assert new[name] == old[name]
    assert len(new["files"]) == 3
    assert state(opened(tmp_path)) == state(again)
    data = bytearray((tmp_path / "facts-000001.safetensors").read_bytes())
    (tmp_path / "facts-000001.safetensors").write_bytes(
        (tmp_path / "facts-000002.safetensors").read_bytes()
    )
    with pytest.raises(LanguageError, match="is not what the stream wrote"):
        opened(tmp_path)
    (tmp_path / "facts-000001.safetensors").write_bytes(data)
    assert len(opened(tmp_path)) == 3


def test_a_method_of_any_weight_knows_its_own_metric_again():
    """w·3/3 is not w for every w, and a stream asks for its settings at each opening."""
    from rankedit_recipes.language.settings import Settings

    for weight in (0.1, 0.2, 0.05, 1.7):
        settings = Settings("one", weight=weight, softness=1.0, layers=3)
        assert settings.shared_by(3).shared_by(3) == settings
        shared = settings.shared_by(2)
        assert shared.shared_by(2) == shared


def test_the_command_line_advises_commands(tmp_path):
    begun(tmp_path)
    stale = opened(tmp_path)
    opened(tmp_path).undo()
    with pytest.raises(LanguageError) as caught:
        stale.undo()
    said = str(caught.value)
    for pattern, instead in REMEDIES:
        said = re.sub(pattern, instead, said)
    assert said.endswith("nothing was written. Give the same command again.")


def test_undo_takes_no_negative_number(tmp_path):
    with pytest.raises(LanguageError, match="with N at least 1"):
        list(tasks.undo_in(None, tmp_path, None, [], -1, tasks.Outputs()))
