"""Every message of the mathematical modules names its call, and is quoted by a test."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    *("shapes", "moments", "packing", "provenance", "shrinkage", "subspace", "factors", "metric"),
    *("edits", "gates", "gated", "merging", "linear_outputs", "gram", "closed_form", "ledger"),
    *("testing/solvers", "testing/edits"),
)
TESTS = (
    *("shapes", "moments", "shrinkage", "metric", "edits", "gates", "gated", "merging"),
    *("closed_form", "methods_table", "ledger", "ledger_solvers", "testing"),
)

# Consecutive words of a message that a test must quote.
QUOTED = 3


def pieces(node: ast.expr) -> list[str]:
    """The literal parts of a string or f-string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        joined = "".join(
            part.value if isinstance(part, ast.Constant) else "\0" for part in node.values
        )
        return joined.split("\0")
    return []


def messages(module: str) -> list[tuple[int, list[str]]]:
    """Line and literal parts of every message that a module raises."""
    tree = ast.parse((ROOT / "rankedit" / f"{module}.py").read_text())
    raised = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise)]
    calls = [call for call in raised if isinstance(call, ast.Call) and call.args]
    return [(call.lineno, pieces(call.args[0])) for call in calls]


def words(text: str) -> list[str]:
    return re.sub(r"\\(.)", r"\1", text).replace("^", " ").split()


def quotations() -> set[tuple[str, ...]]:
    """All runs of words in the strings of the tests, docstrings left out."""
    found = set()
    for name in TESTS:
        tree = ast.parse((ROOT / "tests" / f"test_{name}.py").read_text())
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in documentation:
                continue
            for text in pieces(node) if isinstance(node, ast.Constant | ast.JoinedStr) else []:
                # Of what a pattern leaves open, and of alternatives, each side for itself.
                for part in re.split(r"\.\*|\||[()]", text):
                    run = words(part)
                    found |= {tuple(run[i : i + QUOTED]) for i in range(len(run))}
    return found


QUOTATIONS = quotations()
MESSAGES = [
    pytest.param(parts, id=f"{module}:{line}")
    for module in MODULES
    for line, parts in messages(module)
]


def is_quoted(parts: list[str]) -> bool:
    runs = [words(re.sub(r"[()]", " ", part)) for part in parts]
    long = [run for run in runs if len(run) >= QUOTED]
    # A message of which the caller gives all but a word or two has no text of its own.
    return not long or any(
        tuple(run[i : i + QUOTED]) in QUOTATIONS for run in long for i in range(len(run))
    )


@pytest.mark.parametrize("parts", MESSAGES)
def test_is_quoted_by_a_test(parts):
    assert is_quoted(parts), f"no test matches: {' … '.join(parts)}"


@pytest.mark.parametrize("parts", MESSAGES)
def test_begins_with_the_call(parts):
    """Either literally, or with what the caller gives as the call's name."""
    assert parts[0] == "" or re.match(r"[A-Za-z_.]+( \+ LowRank)?(:|$)", parts[0]), parts


def test_there_are_messages():
    assert len(MESSAGES) > 60
