"""An interrupt at any moment leaves the model as it was, or as was asked, and no trace."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest
import torch

from rankedit.interrupt import completely
from rankedit.models import swapping
from rankedit.models.fusing import fuse_, fused, unfuse_
from rankedit.models.patching import attach, detach_all
from tests.patching_cases import gated, low_rank, residual, state_of

X = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


class Stop(BaseException):
    """What a signal's handler may raise; no `Exception`, as `KeyboardInterrupt` is none."""


@pytest.fixture(autouse=True)
def _alarm():
    def stop(*_):
        raise Stop

    earlier = signal.signal(signal.SIGALRM, stop)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, earlier)


def interrupted(act, moment):
    """Run something, with a signal after so many seconds; whether it came while that ran."""
    try:
        signal.setitimer(signal.ITIMER_REAL, moment)
        act()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        return True
    return False


EDITS = {"inner": [gated(16, 32), low_rank(16, 32)], "outer": low_rank(32, 16)}
STATIC = {"inner": low_rank(16, 32), "outer": low_rank(32, 16), "head": low_rank(16, 8)}
OTHER = {"inner": low_rank(16, 32, 5)}


def look(model):
    """All there is to see of a model: classes, attributes, bits, hooks, edits, what it gives."""
    seen = {}
    for name, (kind, names, bits, kept, hooks) in state_of(model).items():
        digests = {key: bit and bit[1] for key, bit in bits.items()}
        seen[name] = kind, names, digests, kept, [type(hook) for hook in hooks]
    slots = [[slot.edit for slot in swapping.slots_of(module)] for module in model.modules()]
    return seen, slots, list(fused(model)), model(X).tolist(), torch.is_grad_enabled()


def about_to(verb, *, beside):
    """A model, bare or with an edit, and what is to be done to it."""
    model = residual()
    if beside:
        attach(model, OTHER) if verb in ("attach", "detach") else fuse_(model, OTHER)
    if verb == "attach":
        return model, lambda: attach(model, EDITS)
    if verb == "detach":
        return model, attach(model, EDITS).detach
    if verb == "fuse_":
        return model, lambda: fuse_(model, STATIC)
    fuse_(model, STATIC)
    return model, lambda: unfuse_(model)


def shares(verb, moments, seed, *, beside=False):
    """Interrupt it that many times; how often it left the model as it was, and as was asked."""
    generator, found = random.Random(seed), {"inside": 0, "before": 0, "done": 0}
    times = []
    for _ in range(10):
        model, act = about_to(verb, beside=beside)
        before, started = look(model), time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
        done = look(model)
    for _ in range(moments):
        model, act = about_to(verb, beside=beside)
        found["inside"] += interrupted(act, generator.uniform(1e-6, 1.1 * sorted(times)[5]))
        now = look(model)
        assert now in (before, done)
        found["before" if now == before else "done"] += 1
        detach_all(model)
        unfuse_(model)
        assert look(model) == look(residual())
    return found


VERBS = ["attach", "detach", "fuse_", "unfuse_"]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_at_some_moments(verb, beside):
    found = shares(verb, 60, 0, beside=beside)
    assert found["inside"] > 5
    assert found["before"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_at_many_moments(verb):
    """Thousands are a study of minutes for each verb: `MOMENTS=2000 pytest -m slow -s` of this."""
    moments = int(os.environ.get("MOMENTS", "300"))
    found = shares(verb, moments, 1)
    print(verb, found)
    assert found["inside"] > moments / 10


def test_all_steps_are_done_whatever_comes_between():
    class Steps(list):
        def do(self, number):
            self.append(number)
            if self == [0, 1]:
                raise Stop

    done = Steps()
    with pytest.raises(Stop):
        completely([lambda n=n: done.do(n) for n in range(3)])
    assert done == [0, 1, 0, 1, 2]


def test_a_failing_step_tells_why():
    def fail():
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        completely([fail])


def test_a_handler_may_itself_detach():
    """The lock is one that its own thread may take again."""
    model = residual()
    with swapping.LOCK:
        attach(model, EDITS)
        assert detach_all(model) == 3
        found = []
        thread = threading.Thread(target=lambda: found.append(model(X)))  # forwards need no lock
        thread.start()
        thread.join(timeout=20)
    assert len(found) == 1
