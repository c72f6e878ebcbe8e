"""Data that go on from a place: gone on with there, and refused where the place leads elsewhere."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from rankedit import StatisticsError
from rankedit.collecting import checkpoint
from rankedit.collecting.checkpoint import Checkpoint
from rankedit.collecting.collect import collect
from tests.test_collect_resume import failing, make_batches, same_states


class Loader:
    """Batches with a place, as torchdata's loaders have it; may break off, and may forget."""

    def __init__(self, batches, *, ahead=1, breaks=None):
        self.batches, self.ahead, self.breaks = batches, ahead, breaks
        self.at, self.read = 0, 0

    def __iter__(self):
        buffer = []
        while self.at < len(self.batches) or buffer:
            while self.at < len(self.batches) and len(buffer) < self.ahead:
                if self.at == self.breaks:
                    raise OSError("gone")
                buffer.append(self.batches[self.at])
                self.at, self.read = self.at + 1, self.read + 1
            yield buffer.pop(len(buffer) // 2)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def run(batches, path=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5))
    kept = None if path is None else Checkpoint(path, seconds=0.0)
    return collect(model, "*", batches, checkpoint=kept, progress=False)


@pytest.mark.parametrize("at", range(1, 6))
def test_only_the_last_batch_is_read_again(tmp_path, at):
    path = tmp_path / "partial"
    with pytest.raises(OSError, match="gone"):
        run(Loader(make_batches(), breaks=at), path)
    rest = Loader(make_batches())
    same_states(run(rest, path), run(make_batches()))
    # The first one has no place before it.
    assert rest.read == (6 - at + 1 if at > 1 else 6)


def test_it_may_be_interrupted_again_at_once(tmp_path):
    path = tmp_path / "partial"
    for at in (3, 3, 4, 5, 5):
        with pytest.raises(OSError, match="gone"):
            run(Loader(make_batches(), breaks=at), path)
    same_states(run(Loader(make_batches()), path), run(make_batches()))


@pytest.mark.parametrize("ahead", [2, 3])
def test_a_state_that_leaves_out_what_was_read_ahead_is_refused(tmp_path, ahead):
    path = tmp_path / "partial"
    with pytest.raises(OSError, match="gone"):
        run(Loader(make_batches(9), ahead=ahead, breaks=6), path)
    kept = path.read_bytes()
    said = r"made from data whose state leads back to them; resume .* or remove the file"
    with pytest.raises(StatisticsError, match=said):
        run(Loader(make_batches(9), ahead=ahead), path)
    assert path.read_bytes() == kept


def test_data_that_end_before_the_place_are_refused(tmp_path):
    path = tmp_path / "partial"
    with pytest.raises(OSError, match="gone"):
        run(Loader(make_batches(), breaks=4), path)
    with pytest.raises(StatisticsError, match="made from data that went on behind it"):
        run(Loader(make_batches()[:3]), path)


@pytest.mark.parametrize("place", ['{"at": 3}', "[3]", "3"])
def test_places_of_another_form_are_read_from_the_front(tmp_path, place):
    path, seen = tmp_path / "partial", []
    original = checkpoint.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", lambda *told: seen.append(told) or original(*told))
        with pytest.raises(OSError, match="gone"):
            run(failing(make_batches(), 3, OSError("gone")), path)
    _, plan, state = seen[-1]
    checkpoint.write(path, plan, replace(state, place=json.dumps(json.loads(place))))
    rest = Loader(make_batches())
    same_states(run(rest, path), run(make_batches()))
    assert rest.read == 6
