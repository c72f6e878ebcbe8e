"""An interrupted collection goes on where it stopped, with the same result to the bit."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from rankedit import EditFileError, Provenance, RankeditWarning, StatisticsError
from rankedit.collecting import checkpoint
from rankedit.collecting.checkpoint import Checkpoint
from rankedit.collecting.collect import collect

ROOT = Path(__file__).parents[1]


def make_model(width=7, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 9), nn.Tanh(), nn.Linear(9, 5), nn.Linear(5, 2))


def make_batches(count=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 4, 7, generator=generator) for _ in range(count)]


def run(batches, path=None, which="*", **options):
    checkpoint = None if path is None else Checkpoint(path, seconds=0.0)
    return collect(make_model(), which, batches, checkpoint=checkpoint, progress=False, **options)


def failing(batches, at, error):
    def generate():
        for number, batch in enumerate(batches):
            if number == at:
                raise error
            yield batch

    return generate()


def same_states(a, b):
    assert a.keys() == b.keys()
    for name in a:
        first, second = a[name].state(), b[name].state()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert a[name].provenance == b[name].provenance
        assert a[name].dtype == b[name].dtype


@pytest.fixture
def uninterrupted():
    return run(make_batches())


@pytest.mark.parametrize("at", range(1, 6))
def test_only_the_missing_batches_are_run(tmp_path, uninterrupted, at):
    path = tmp_path / "partial"
    with pytest.raises(OSError, match="gone"):
        run(failing(make_batches(), at, OSError("gone")), path)
    model, calls = make_model(), []

    def call(x):
        calls.append(1)
        model(x)

    moments = collect(model, "*", make_batches(), call=call, checkpoint=path, progress=False)
    assert len(calls) == 6 - at
    same_states(moments, uninterrupted)
    assert list(tmp_path.iterdir()) == []  # complete: nothing is left behind


def test_a_crash_within_a_batch_loses_that_batch_only(tmp_path, uninterrupted):
    path, model, failures = tmp_path / "partial", make_model(), []
    options = {"checkpoint": Checkpoint(path, seconds=0.0), "progress": False}

    def fail(*_):  # after the first projection has been read, before the second
        failures.append(1)
        if len(failures) == 4:
            raise MemoryError("no more")

    handle = model[1].register_forward_hook(fail)
    with pytest.raises(MemoryError):
        collect(model, "*", make_batches(), **options)
    handle.remove()
    calls = []
    moments = collect(
        model, "*", make_batches(), call=lambda x: calls.append(1) or model(x), **options
    )
    assert len(calls) == 3
    same_states(moments, uninterrupted)


def test_sharing_survives_the_interruption(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(7, 2), nn.Linear(7, 3)

        def forward(self, x):
            return self.a(x), self.b(x)

    path, model = tmp_path / "partial", Pair()
    whole = collect(model, "*", make_batches(), progress=False)
    with pytest.raises(OSError, match="gone"):
        collect(
            model, "*", failing(make_batches(), 3, OSError("gone")), checkpoint=path, progress=False
        )
    resumed = collect(model, "*", make_batches(), checkpoint=path, progress=False)
    assert resumed["a"] is resumed["b"]
    assert whole["a"] is whole["b"]
    same_states(resumed, whole)


def test_keyboard_interrupt_says_how_to_resume(tmp_path, uninterrupted):
    path = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt, match=f"make the same call again.*checkpoint='{path}'"):
        run(failing(make_batches(), 4, KeyboardInterrupt()), path)
    same_states(run(make_batches(), path), uninterrupted)


def test_without_a_checkpoint_an_interrupt_is_what_it_always_was():
    with pytest.raises(KeyboardInterrupt) as caught:
        run(failing(make_batches(), 4, KeyboardInterrupt()))
    assert str(caught.value) == ""


@pytest.mark.usefixtures("ctrl_c")
def test_the_first_ctrl_c_finishes_the_batch(tmp_path, uninterrupted, capsys):
    path, model, done = tmp_path / "partial", make_model(), []

    def call(x):
        done.append(1)
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        model(x)

    with pytest.raises(KeyboardInterrupt, match="make the same call again"):
        collect(model, "*", make_batches(), call=call, checkpoint=path, progress=False)
    assert "Finishing this batch; press Ctrl-C again to stop at once" in capsys.readouterr().err
    assert len(done) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same_states(collect(model, "*", make_batches(), checkpoint=path, progress=False), uninterrupted)


@pytest.mark.usefixtures("ctrl_c")
def test_the_second_ctrl_c_stops_at_once(tmp_path):
    model, batches_run = make_model(), []

    def call(x):
        batches_run.append(1)
        if len(batches_run) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        model(x)

    path = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt, match="make the same call again"):
        collect(
            model, "*", make_batches(), call=call, checkpoint=Checkpoint(path, 0.0), progress=False
        )
    calls = []
    collect(
        model,
        "*",
        make_batches(),
        call=lambda x: calls.append(1) or model(x),
        checkpoint=path,
        progress=False,
    )
    assert len(calls) == 4


def interrupted(path, **options):
    with pytest.raises(OSError, match="gone"):
        run(failing(make_batches(), 3, OSError("gone")), path, **options)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "partial"
    interrupted(path, provenance=Provenance(corpus="letters"))
    before = path.read_bytes()
    with pytest.raises(StatisticsError, match=r"another collection: its provenance.*letters"):
        run(make_batches(), path)
    given = {"provenance": Provenance(corpus="letters")}
    with pytest.raises(StatisticsError, match="of another collection: its names is"):
        run(make_batches(), path, which="0", **given)
    with pytest.raises(StatisticsError, match="of another collection: its weights is"):
        collect(make_model(seed=3), "*", make_batches(), checkpoint=path, progress=False, **given)
    with pytest.raises(StatisticsError, match="from data with another first batch"):
        run(make_batches(seed=4), path, **given)
    with pytest.raises(StatisticsError, match="3 batches of this process, but there are only 2"):
        run(make_batches(2), path, **given)
    assert path.read_bytes() == before


def test_a_pass_whose_result_is_refused_is_kept(tmp_path):
    path, model, calls = tmp_path / "partial", make_model(), []

    def first_only(x):
        calls.append(1)
        model[0](x)

    options = {"call": first_only, "progress": False}
    for _ in range(2):  # the second time at once, without running the model again
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RankeditWarning)
            with pytest.raises(StatisticsError, match=r"1 projections were not .* any batch: '2'"):
                collect(model, ["0", "2"], make_batches(), checkpoint=path, **options)
        assert len(calls) == 6
        assert path.exists()
    more = [*make_batches(), torch.ones(1, 1, 7)]
    moments = collect(model, ["0", "2"], more, call=model, checkpoint=path, progress=False)
    assert (moments["0"].count, moments["2"].count) == (6 * 12 + 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_processes_is_refused(tmp_path):
    (tmp_path / "partial.rank0-of-2").touch()
    with pytest.raises(StatisticsError, match="by another number of processes than 1"):
        run(make_batches(), tmp_path / "partial")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "partial"
    interrupted(path)
    whole = path.read_bytes()
    step = max(1, len(whole) // 60)
    for length in range(0, len(whole), step):
        path.write_bytes(whole[:length])
        with pytest.raises(EditFileError, match="is damaged or no checkpoint"):
            run(make_batches(), path)
    path.write_bytes(whole.replace(b"float32", b"flaot32", 1))
    with pytest.raises(EditFileError, match="is damaged or no checkpoint"):
        run(make_batches(), path)


def test_300_flipped_bits_are_300_refusals(tmp_path):
    path = tmp_path / "partial"
    interrupted(path)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        bit = draw.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(EditFileError, match=r"is damaged or no checkpoint.*Remove the file"):
            run(make_batches(), path)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    same_states(run(make_batches(), path), run(make_batches()))


def forged(entry=None, **group):
    """What `write` writes for a state that no run could have."""

    def change(state):
        first = replace(state.groups[0], **group)
        return replace(state, groups=[first, *state.groups[1:]], **(entry or {}))

    return change


def without_a_group(state):
    return replace(state, groups=[])


def more_vectors(state):
    state.groups[0].moment.update(torch.ones(1, state.groups[0].moment.dim))
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forged({"batches": -3}), "at least one batch, got -3"),
        (forged({"batches": True}), "at least one batch, got True"),
        (forged({"batches": "3"}), "at least one batch, got '3'"),
        (forged({"first": ""}), "digests of its batches"),
        (forged({"done": None}), "digests of its batches"),
        (without_a_group, "at least one batch"),
        (forged(members=["0", "0"]), "each projection must be in one group"),
        (forged(members=["7"]), "each projection must be in one group"),
        (forged(members="0"), "a list"),
        (forged(members=[]), "of 36 vectors cannot count"),
        (forged(kept=-36), "-36 of 36 vectors cannot count"),
        (forged(kept=37), "37 of 36 vectors cannot count"),
        (forged(offered=1.5), "36 of 1.5 vectors cannot count"),
        (forged(kept=35), "its sums are of 36 vectors, not of 35"),
        (more_vectors, "its sums are of 37 vectors, not of 36"),
    ],
)
def test_impossible_contents_are_refused_whoever_signed_them(tmp_path, change, message):
    path, seen = tmp_path / "partial", []
    original = checkpoint.write

    def keeping(file, plan, state):
        seen.append((plan, state))
        original(file, plan, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", keeping)
        interrupted(path)
    plan, state = seen[-1]
    checkpoint.write(path, plan, change(state))
    with pytest.raises(EditFileError, match=f"is damaged or no checkpoint: .*{message}"):
        run(make_batches(), path)


def test_the_plan_has_the_mask_and_all_data(tmp_path):
    path = tmp_path / "partial"
    interrupted(path)
    with pytest.raises(StatisticsError, match="of another collection: its mask is 'attention_mask"):
        run(make_batches(), path, mask=None)
    other = make_batches()
    other[2] = other[2] + 1  # not the first one, which is digested whole
    with pytest.raises(StatisticsError, match="was made from other data in its 3 batches"):
        run(other, path)
    path.unlink()
    every = {"mask": lambda x: torch.ones(x.shape[:2])}
    interrupted(path, **every)
    with pytest.raises(StatisticsError, match="its mask is a function"):
        run(make_batches(), path, mask=lambda x: torch.ones(x.shape[:2]).bool())
    # the same function, from another line of the program
    resumed = run(make_batches(), path, mask=lambda x: torch.ones(x.shape[:2]))
    same_states(resumed, run(make_batches()))


def test_a_file_that_is_kept_until_the_result_is_saved(tmp_path, uninterrupted):
    path, model, calls = tmp_path / "partial", make_model(), []
    kept = Checkpoint(path, seconds=1e6, keep=True)
    for _ in range(2):  # killed before it was saved: the second time nothing runs
        moments = collect(
            model,
            "*",
            make_batches(),
            call=lambda x: calls.append(1) or model(x),
            checkpoint=kept,
            progress=False,
        )
        same_states(moments, uninterrupted)
        assert len(calls) == 6
        assert path.exists()
    kept.remove()
    kept.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((7,), "path must be a path"), (("x", -1), "at least 0"), (("x", "1"), "must be a number")],
)
def test_checkpoints_that_are_none(arguments, message):
    with pytest.raises(StatisticsError, match=f"Checkpoint: .*{message}"):
        Checkpoint(*arguments)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("missing/partial", FileNotFoundError),
        (".", IsADirectoryError),
        ("a/b/c", FileNotFoundError),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_the_first_batch(tmp_path, place, error):
    called = []
    with pytest.raises(error, match=r"folder"):
        collect(
            make_model(), "*", make_batches(), call=called.append, progress=False,
            checkpoint=Checkpoint(tmp_path / place),
        )  # fmt: skip
    assert not called


KILLED = textwrap.dedent(
    """
    import sys
    from tests_resume import make_batches, make_model
    from rankedit.collecting.checkpoint import Checkpoint
    from rankedit.collecting.collect import collect
    model = make_model()
    def call(x):
        print("batch", flush=True)
        model(x)
    moments = collect(model, "*", make_batches(30), call=call,
                      checkpoint=Checkpoint(sys.argv[1], seconds=0.0), progress=False)
    """
)


def test_kill_at_any_moment_and_resume(tmp_path):
    (tmp_path / "tests_resume.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('source', {__file__!r})\n"
        "source = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(source)\n"
        "make_model, make_batches = source.make_model, source.make_batches\n"
    )
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / "partial"
    for kill in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )
        for _ in range(4 + 3 * kill):
            process.stdout.readline()
        time.sleep(0.002 * kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert path.exists()
    calls = []
    model = make_model()
    moments = collect(
        model,
        "*",
        make_batches(30),
        call=lambda x: calls.append(1) or model(x),
        checkpoint=path,
        progress=False,
    )
    assert 0 < len(calls) < 30
    same_states(moments, collect(make_model(), "*", make_batches(30), progress=False))
    assert list(folder.iterdir()) == []
