"""`pytest -m gpu`: what must be right before its time means anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from accelerator.kept import FAILED, Place, Row

FILE = "tests/test_accelerator.py"


def units(place: Place) -> dict[str, Callable[[], Row]]:
    """One run of all of them; on a processor, of those that are not about CUDA alone."""
    return {"pytest -m gpu": lambda: _run(place)}


def _run(place: Place) -> Row:
    root = Path(__file__).resolve().parent.parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-rs", FILE]
    environment = {**os.environ, "RANKEDIT_GPU_TESTS": place.device.type}
    result = subprocess.run(
        command, check=False, cwd=root, capture_output=True, text=True, timeout=600, env=environment
    )
    print(result.stdout[-6000:], flush=True)
    if result.returncode:
        # All the same what can be measured is measured: the page says that they failed.
        return {FAILED: result.stdout.strip().splitlines()[-1]}
    return {"result": result.stdout.strip().splitlines()[-1]}
