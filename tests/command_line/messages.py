"""All messages that the code can raise, as templates with an X for each value."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDERS = {
    "library": ROOT / "rankedit",
    "perfusion": ROOT / "recipes/rankedit_recipes/perfusion",
    "language": ROOT / "recipes/rankedit_recipes/language",
    "concepts": ROOT / "recipes/rankedit_recipes/concepts",
    "diffusion": ROOT / "recipes/rankedit_recipes/diffusion",
}


def messages(*parts: str) -> Iterator[tuple[str, str]]:
    """Name of the file, and the message."""
    for part in dict.fromkeys(parts):
        for file in sorted(FOLDERS[part].rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    for argument in node.exc.args:
                        if isinstance(argument, (ast.JoinedStr, ast.Constant)):
                            yield file.name, _text(argument)
                elif isinstance(node, ast.Return) and isinstance(node.value, ast.JoinedStr):
                    yield file.name, _text(node.value)


def _text(node: ast.JoinedStr | ast.Constant) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "'X'" for part in node.values
    )
