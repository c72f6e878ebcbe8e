"""Fixtures that several folders of tests share."""

import os
import signal

import pytest

# Read when huggingface_hub is imported: without a network it tries again for most of a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def ctrl_c():
    """Python's own handling of Ctrl-C, which a process started in the background does not have."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)
