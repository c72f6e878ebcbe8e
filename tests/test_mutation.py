"""The mutation script works; all of its mutants are tried by `make mutation`."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutation.py")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)


@pytest.mark.slow
def test_central_lines_cannot_be_broken_unnoticed():
    result = run("sign", "bias", "transpose", "ridge", "metric everywhere", "denominator")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "7 of 7 mutants were caught" in result.stdout


@pytest.mark.slow
def test_a_survivor_is_reported(tmp_path):
    """A mutant that only adds a comment: nothing can catch it."""
    line = "self.squares[:, None]"
    broken, same = f"{line}.sqrt()", f"{line}  # the same"
    source = SCRIPT.read_text()
    assert source.count(broken) == 1
    source = source.replace(broken, same)
    source = source.replace("Path(__file__)", f"Path({str(SCRIPT)!r})")
    script = tmp_path / "mutation.py"
    script.write_text(source)
    result = subprocess.run([sys.executable, script, "denominator"], capture_output=True, text=True)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "NOTHING: it survived" in result.stdout
    assert "0 of 1 mutants were caught" in result.stdout


def test_an_unknown_mutant_lists_the_known_ones():
    result = run("no such mutant")
    assert result.returncode == 1
    assert "known: ['drop the ridge'" in result.stderr
