"""Run all benchmarks and write their table to benchmarks/README.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent

INTRODUCTION = """# Benchmarks

`make bench` runs them and rewrites this page. Every benchmark checks its result first, then times
ours and the peer in alternation, in one process; the ratio is the median of the pairwise ratios
ours/peer (below 1: ours is faster), with its quartiles. Absolute times depend on the machine,
ratios hardly.
"""


def processor() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """One sentence about where the figures come from."""
    import torch

    threads = torch.get_num_threads()
    return (
        f"Measured on {processor()}, {os.cpu_count()} cores, {threads} "
        f"thread{'' if threads == 1 else 's'}, {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, beside other programs with a "
        f"load average of {os.getloadavg()[0]:.1f}."
    )


def row(result: dict[str, Any]) -> str:
    """One line of the table."""
    info = result["extra_info"]
    low, high = info["quartiles"]
    target = f"≤ {info['target']}" if info["target"] else ""
    milliseconds = result["stats"]["median"] * 1e3
    cells = (
        info["what"],
        info["peer"],
        f"{info['ratio']:.2f} ({low:.2f} to {high:.2f})",
        target,
        f"{milliseconds:.3g}",
        info["note"],
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Run, write, and return pytest's exit code."""
    where = machine()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", str(FOLDER), "-q", "-o", "addopts="]
        options = ["-o", "python_files=test_*.py", "--import-mode=importlib"]
        done = subprocess.run(
            [*command, *options, f"--benchmark-json={report}", *sys.argv[1:]], cwd=ROOT, check=False
        )
        results = json.loads(report.read_text())["benchmarks"] if report.exists() else []
    header = "| what | peer | ratio ours/peer (quartiles) | target | ours, ms | |\n"
    table = header + "|---|---|---|---|---|---|\n" + "\n".join(map(row, results))
    page = f"{INTRODUCTION}\n{where}\n\n{table}\n"
    print(page)
    if done.returncode == 0 and not sys.argv[1:]:  # a selection is shown, not kept
        (FOLDER / "README.md").write_text(page, encoding="utf-8")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
