"""Every command of every recipe: on its page, and answered without anything heavy."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import pytest
from rankedit_recipes.language import METHODS
from rankedit_recipes.language.commands import options

DOCS = Path(__file__).parents[2] / "docs"
# The mathematics has the page `concepts`.
PAGES = {"concepts": "erasing"}
RECIPES = {entry.name: entry for entry in entry_points(group="rankedit.recipes")}


def commands(name: str) -> list[str]:
    registered = RECIPES[name].load().registered_commands
    return [command.name or command.callback.__name__ for command in registered]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_command_stands_on_the_recipes_page(name: str) -> None:
    page = (DOCS / f"{PAGES.get(name, name)}.md").read_text(encoding="utf-8")
    missing = [one for one in commands(name) if not re.search(rf"\| `{one}` \|", page)]
    assert not missing, f"docs/{PAGES.get(name, name)}.md: the table of commands lacks {missing}"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_stands_in_the_tables_of_recipes(name: str) -> None:
    for page in ("recipes/README.md", "README.md"):
        assert f"{name}" in (DOCS.parent / page).read_text(encoding="utf-8").lower(), page


def test_the_help_names_every_method() -> None:
    said = get_args(options.Method)[1].help
    assert [name for name in METHODS if name not in said] == []
