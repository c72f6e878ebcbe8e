"""How soon the command line answers, beside `python -c "import torch"`.

    python benchmarks/command_line.py [--repeats 7] [--python PATH]

Each answer is timed in a process of its own, in alternation with the import, and its text is
checked. It should come within 0.35 of the import's time plus 0.3 s. `--python` times another
installation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

MAIN = "import sys; from rankedit.cli import main; sys.argv[0] = 'rankedit'; main()"
ANSWERS = {
    "--help": "perfusion",
    "perfusion learn --help": "--category",
    "language edit --help": "--method",
    "--version": "rankedit",
    "perfusion learn": "--category",
    "perfusion generate": "Missing argument",
}
SHARE, SECONDS = 0.35, 0.3


def timed(python: str, code: str, arguments: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(
        [python, "-c", code, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    return time.perf_counter() - start, done.stdout + done.stderr


def measure(python: str, repeats: int) -> dict[str, tuple[float, float, bool]]:
    """For each answer its median time, that of the import beside it, and whether it was right."""
    for code in ("import torch", MAIN):  # what is read for the first time is not timed
        timed(python, code, ["--help"])
    found = {}
    for asked, wanted in ANSWERS.items():
        pairs = []
        right = True
        for _ in range(repeats):
            torch_alone, _ = timed(python, "import torch", [])
            answer, said = timed(python, MAIN, asked.split())
            right &= wanted in said
            pairs.append((answer, torch_alone))
        found[asked] = (*map(statistics.median, zip(*pairs, strict=True)), right)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--python", default=sys.executable)
    given = parser.parse_args()
    late = 0
    print("| command | seconds | `import torch` | allowed | answer |\n|---|---|---|---|---|")
    for asked, (answer, alone, right) in measure(given.python, given.repeats).items():
        allowed = SHARE * alone + SECONDS
        good = right and answer <= allowed
        late += not good
        said = "right" if right else "WRONG"
        print(f"| `rankedit {asked}` | {answer:.2f} | {alone:.2f} | {allowed:.2f} | {said} |")
    print(f"{len(ANSWERS) - late} of {len(ANSWERS)} in time")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
