"""Kill savers, fill the disk under them, let two save at once; print as JSON what was found.

Run as `python tests/attacks/crash_saving.py kill|full|race FOLDER COUNT`. A process of its own,
because it forks: the parent has everything imported and no threads, so that a saver starts at once.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from rankedit.edits import LowRank
from rankedit.errors import RankeditError
from rankedit.files.storage import load, save

OLD, NEW, DISK_FULL = 1.0, 2.0, 7
SIZE = 4096


def edit(mark: float) -> dict[str, LowRank]:
    return {
        f"layer.{i}": LowRank(torch.full((SIZE, 1), mark + i), torch.ones(1, 8)) for i in range(4)
    }


def what_is_there(path: Path) -> str:
    """`old`, `new`, or what is wrong with the file."""
    try:
        items = load(path)
    except (RankeditError, OSError) as error:
        return f"broken: {error}"
    for name, mark in (("old", OLD), ("new", NEW)):
        if all(torch.equal(items[key].up, value.up) for key, value in edit(mark).items()):
            return name
    return "mixed"


def save_for_ever(path: Path) -> None:
    while True:
        save(edit(NEW), path)
        save(edit(OLD), path)


def kill(path: Path, count: int) -> dict[str, object]:
    """Kill a saver at random moments; each next saver must clear away what the last one left."""
    draw, found, litter = random.Random(0), {}, 0
    begun = time.monotonic()
    for _ in range(4):
        save(edit(OLD), path)
    # Long enough that savers are hit in their first, second and third file on a busy machine too.
    longest = time.monotonic() - begun
    for _ in range(count):
        child = os.fork()
        if not child:
            save_for_ever(path)
        time.sleep(draw.uniform(0.001, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state = what_is_there(path)
        found[state] = found.get(state, 0) + 1
        litter += len(list(path.parent.iterdir())) - 1
    save(edit(OLD), path)
    left = sorted(entry.name for entry in path.parent.iterdir())
    return {"found": found, "litter_seen": litter, "left": left}


def full(path: Path, count: int) -> dict[str, object]:
    """Let the disk be full after more and more bytes."""
    save(edit(OLD), path)
    size = path.stat().st_size
    results: dict[str, int] = {}
    for offset in (size * i // count for i in range(count)):
        child = os.fork()
        if not child:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (offset, offset))
            try:
                save(edit(NEW), path)
            except OSError:
                os._exit(DISK_FULL)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        names = len(list(path.parent.iterdir()))
        result = f"{what_is_there(path)}, exit {status}, {names} file(s)"
        results[result] = results.get(result, 0) + 1
    return {"found": results, "left": sorted(entry.name for entry in path.parent.iterdir())}


def race(path: Path, count: int) -> dict[str, object]:
    """Read while two savers write the same file."""
    save(edit(OLD), path)
    children = []
    for _ in range(2):
        children.append(os.fork())
        if not children[-1]:
            save_for_ever(path)
    found: dict[str, int] = {}
    for _ in range(count):
        time.sleep(0.002)
        state = what_is_there(path)
        found[state] = found.get(state, 0) + 1
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    save(edit(OLD), path)
    return {"found": found, "left": sorted(entry.name for entry in path.parent.iterdir())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[2]) / "edit.safetensors"
    report = {"kill": kill, "full": full, "race": race}[sys.argv[1]](target, int(sys.argv[3]))
    print(json.dumps(report))
