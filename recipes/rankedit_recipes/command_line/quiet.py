"""Notices of other libraries that nobody at a terminal can act on."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Import libraries without what they say about each other.

    transformers 5.23 tells that torchvision is missing, diffusers 0.42 that it cannot import parts
    of torchao, torchao 0.18 which of its kernels do not load: about what is installed, whether or
    not the command needs it. Errors are let through, and so is everything that is said while a
    model is loaded or runs: that a checkpoint lacks weights must be seen.
    """
    before = logging.root.manager.disable
    # Errors still pass; a stricter level that was set before stays.
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
