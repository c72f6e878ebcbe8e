"""Kill writers of a stream, and let two write at once; print as JSON what was found.

Run as `python tests/language/attack_store.py kill|race|retry FOLDER COUNT`. A process of its own,
because it forks: the parent has everything imported and no threads, so that writers start at once.
"""

import json
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
from rankedit_recipes.language import LanguageError

from tests.language.stand_in import (
    KINDS,
    Change,
    begun,
    draws,
    kept,
    kept_of,
    opened,
    request,
    state,
    state_of,
)

DONE, REFUSED, EACH = 0, 3, 20


def forked(work):
    """A child process that does some work, and its exit status."""
    child = os.fork()
    if child:
        return child
    try:
        os._exit(work())
    except BaseException:
        traceback.print_exc()  # `os._exit` says nothing of it
    finally:
        os._exit(9)


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(folder, count):
    """Kill at random moments: what is there is what was before, or what was to be after."""
    draw, found, litter = draws(), {}, 0
    stream = begun(folder)
    start = time.monotonic()
    for kind in KINDS * 2:
        Change(kind, stream.requests(), draw).do(stream)
    # From before the first write to behind the last one, on a busy machine too.
    longest = 1.5 * (time.monotonic() - start) / 6
    requests = stream.requests()
    for number in range(count):
        kind = "add" if len(requests) < 3 else "undo" if len(requests) > 8 else KINDS[number % 3]
        change = Change(kind, requests, draw)
        ready, go = os.pipe()

        def work(change=change, go=go):
            stream = opened(folder)
            os.write(go, b".")
            change.do(stream)
            time.sleep(60)
            return DONE

        child = forked(work)
        os.read(ready, 1)
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go)
        litter += len(list(folder.iterdir())) > 2 + len(files_of(folder))
        name = "neither"
        for when, wanted in (("before", requests), ("after", change.after)):
            if kept(folder) == kept_of(wanted) and state(opened(folder)) == state_of(wanted):
                name, requests = when, wanted
        found[name] = found.get(name, 0) + 1
        if name == "neither":
            break
    stream = opened(folder)
    # As large as when it began; the next change clears away what was left.
    stream.add([request("last")])
    left = {file.name for file in folder.iterdir()}
    return {"found": found, "litter": litter, "left": sorted(left - files_of(folder))}


def files_of(folder):
    """The files that the stream names."""
    return set(json.loads((folder / "stream.json").read_text())["files"])


def adding(folder, who, *, again):
    """Add facts one by one; refused, give up or open the stream again."""
    stream, number = None, 0
    while number < EACH:
        try:
            stream = stream or opened(folder)  # two may begin the folder at once, too
            stream.add([request(f"{who}-{number}")])
            number += 1
        except LanguageError as error:
            if "was changed since it was opened" not in str(error):
                raise
            if not again:
                return REFUSED
            stream = None
    return DONE


def race(folder, count, *, again=False):
    """Two processes add to one stream: facts are there under their own names, or one is refused."""
    found = {}
    for number in range(count):
        here = folder / str(number)
        children = [
            forked(lambda who=who, here=here: adding(here, who, again=again)) for who in "ab"
        ]
        ends = sorted(map(status_of, children))
        requests, _ = there = kept(here)
        counts = [sum(f"fact {who}-" in r.label for r in requests) for who in "ab"]
        right = there == kept_of(requests) and (max(counts) == EACH or ends[0] != DONE)
        whole = counts == [EACH, EACH]
        result = f"{ends}, right {right}, whole {whole}"
        found[result] = found.get(result, 0) + 1
    return {"found": found}


def retry(folder, count):
    return race(folder, count, again=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    report = {"kill": kill, "race": race, "retry": retry}[sys.argv[1]]
    print(json.dumps(report(Path(sys.argv[2]), int(sys.argv[3]))))
