"""What long work says of itself: how far it is, and how long it will take or how fast it goes."""

import io

import pytest
from rich import console

from rankedit import progress as shown
from rankedit.progress import progress


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(shown.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    monkeypatch.setattr(shown, "SECONDS_BETWEEN_LINES", 1.0)


def lines(clock, capsys, steps, total=None, seconds=10, **options):
    with progress("work", total, **options) as advance:
        for number in range(steps):
            clock.now += seconds
            advance(f"note {number}")
    return capsys.readouterr().err.splitlines()


def test_a_number_of_steps_gives_an_estimate(clock, capsys):
    said = lines(clock, capsys, 3, total=4)
    assert said[0] == "work: 1/4, note 0, 0:00:10 elapsed, 0:00:30 left"
    assert said[2] == "work: 3/4, note 2, 0:00:30 elapsed, 0:00:10 left"
    # What was done earlier was not done in this time.
    resumed = lines(clock, capsys, 1, total=12, done=8)
    assert resumed[0] == "work: 9/12, note 0, 0:00:10 elapsed, 0:00:30 left"
    assert lines(clock, capsys, 2, total=2)[1] == "work: 2/2, note 1, 0:00:20 elapsed"


def test_a_known_part_gives_an_estimate_from_the_second_step_on(clock):
    part = [0.5]
    state = shown._State(None, 7, lambda: part[0])
    clock.now += 10
    state.advance()
    assert (state.count(), state.speed()) == ("8, 50%", "0.1 per second")
    clock.now, part[0] = clock.now + 10, 0.6
    state.advance()
    # A tenth in ten seconds, and four are left; the half that was done earlier counts for nothing.
    assert (state.count(), state.speed()) == ("9, 60%", "0:00:40 left")


def test_work_of_unknown_length_says_how_fast_it_goes(clock, capsys):
    said = lines(clock, capsys, 2, seconds=2)
    assert said[0] == "work: 1, note 0, 0:00:02 elapsed, 0.5 per second"
    assert said[1] == "work: 2, note 1, 0:00:04 elapsed, 0.5 per second"


def test_a_terminal_shows_the_same_in_a_bar(clock, monkeypatch):
    written = io.StringIO()
    terminal = console.Console(file=written, force_terminal=True, width=120)
    monkeypatch.setattr(console, "Console", lambda **_: terminal)
    part = [0.0]
    with progress("work", None, share=lambda: part[0]) as advance:
        for _ in range(4):
            clock.now += 5
            part[0] += 0.25
            advance("so far")
    said = written.getvalue()
    assert "4, 100%, so far" in said
    assert "work" in said


def test_silence(clock, capsys):
    assert lines(clock, capsys, 3, shown=False) == []
