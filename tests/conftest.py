"""Fixtures that several folders of tests share."""

import signal

import pytest


@pytest.fixture
def ctrl_c():
    """Python's own handling of Ctrl-C, which a process started in the background does not have."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)
