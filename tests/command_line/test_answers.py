"""What can be answered without a model is answered without importing torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rankedit as rk

# What takes seconds to import.
HEAVY = ["torch", "numpy", "scipy", "PIL", "matplotlib", "diffusers", "transformers"]

CODE = """
import sys
from rankedit.cli import main
sys.argv = ["rankedit", *{arguments!r}]
try:
    main()
except SystemExit as end:
    print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
print(sorted(set({heavy!r}) & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--help"], "perfusion"),
        (["--version"], f"rankedit {rk.__version__}"),
        (["recipes"], "rankedit_recipes.perfusion.commands.cli:app"),
        (["perfusion", "--help"], "learn"),
        (["perfusion", "learn", "--help"], "--category"),
        (["language", "edit", "--help"], "--method"),
        (["perfusion", "learn"], "a folder of photos and --category are needed"),
        (["perfusion", "learn", "photos"], "a folder of photos and --category are needed"),
        (["perfusion", "generate"], "Missing argument"),
        (["perfusion", "generate", "nowhere.safetensors"], "does not exist"),
        (
            ["perfusion", "explain", __file__, "--prompt", "a", "--bias", "high"],
            "Invalid value for '--bias'",
        ),
        (["perfusion", "explain", "--lock", "both"], "is not one of"),
        (["perfusion", "export", __file__], "say what to write"),
        (["language", "undo"], "Missing argument"),
        (["language", "edit", "--nonsense"], "No such option"),
        (["language", "edit"], "edit: give a file of facts"),
        (["concepts", "erase", "--help"], "--hold"),
        (["concepts", "replace", "cat", "cat"], "cannot become itself"),
        (["concepts", "undo"], "Missing argument"),
        (["concepts", "debias", "--help"], "--share"),
        (["concepts", "debias", "car", "--share", "red"], "takes each attribute once"),
        (["concepts", "probe", __file__, "--implicit", "cat"], "takes concept=description"),
        (["concepts", "evaluate", __file__], "Missing option '--prompt'"),
        (["stats", "merge", __file__], "Missing option '--out'"),
        (["perfusion", "stats", "--shard", "65/64"], "counted from 1, ranks from 0"),
        (["language", "stats", "nowhere", "--shard", "1/2"], "'nowhere' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_heavy_is_imported_to_answer(arguments: list[str], answer: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(arguments=arguments, heavy=HEAVY)],
        capture_output=True, text=True, check=True, env={"COLUMNS": "200", "TERM": "dumb"},
    )  # fmt: skip
    assert answer in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
