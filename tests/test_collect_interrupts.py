"""A signal at any moment of `collect`: nothing is left in the model, and the file can be used."""

import copy
import itertools
import os
import random
import signal
import sys
import threading
import time

import pytest
import torch
from torch import nn

from rankedit.collecting.checkpoint import Checkpoint
from rankedit.collecting.collect import collect


class Stop(BaseException):
    """What the handler raises; no `except Exception` sees it."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.a, self.b = nn.Embedding(20, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, input_ids, attention_mask):
        return self.b(self.drop(torch.tanh(self.a(self.emb(input_ids)))))


# Thousands are a study of many minutes: `MOMENTS=2000 pytest -m slow` of this file.
MANY = int(os.environ.get("MOMENTS", "400"))


def make_batches():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (3, 2, 5), generator=generator)
    masks = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return [{"input_ids": x, "attention_mask": masks} for x in ids]


def traces(model):
    """All that a collection may leave behind."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs")
    hooks += ("_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")
    held = [len(getattr(part, kind)) for part in model.modules() for kind in hooks]
    modes = [part.training for part in model.modules()]
    stack = torch._C._len_torch_function_stack()
    return held, modes, stack, torch.is_grad_enabled(), signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize(
    "times", [pytest.param(80, id="80"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
)
# One that comes into a destructor or the callback of a weak reference is only printed by Python.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")
def test_a_signal_at_any_moment(tmp_path, times):
    assert threading.current_thread() is threading.main_thread()
    model, path, batches = Model(), tmp_path / "partial", make_batches()
    model.a.eval()
    weights, before = copy.deepcopy(model.state_dict()), traces(model)
    expected = collect(model, "*", batches, progress=False)
    options = {"checkpoint": Checkpoint(path, seconds=0.0), "progress": False}
    start = time.perf_counter()
    collect(model, "*", batches, **options)
    longest = 1.5 * (time.perf_counter() - start)
    draw, stopped, running = random.Random(0), 0, False

    def raising(number, frame):
        # Late ones come into the lines below, which call off the timer, and would end the test.
        if running:
            raise Stop

    old = signal.signal(signal.SIGALRM, raising)
    try:
        for _ in range(times):
            try:
                running = True
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, longest))
                collect(model, "*", batches, **options)
            except Stop:
                stopped += 1
                assert traces(model) == before  # while the traceback still holds all frames
            finally:
                running = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert traces(model) == before
            found = collect(model, "*", batches, **options)
            for name, moment in expected.items():
                assert torch.equal(found[name].matrix, moment.matrix)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert stopped > times / 20  # how many come while it runs depends on who else runs
    assert not path.exists()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_an_interrupt_while_torch_asks_the_mode_that_follows_tensors():
    # torch takes the mode off its stack in Python while it asks it: every call and line there.
    model, batches = Model(), make_batches()
    before, missed = traces(model), 0
    for moment in itertools.count(1):
        left = moment

        def stop(frame, event, _argument):
            nonlocal left
            if frame.f_code.co_filename != torch.overrides.__file__:
                return None
            left -= event in ("call", "line")
            if not left:
                raise Stop
            return stop

        old = sys.gettrace()
        try:
            sys.settrace(stop)
            collect(model, "*", batches, progress=False)
        except Stop:
            missed += 1
        finally:
            sys.settrace(old)
        assert traces(model) == before, moment
        if left > 0:
            break
    assert missed > 50
