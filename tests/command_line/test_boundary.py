"""What reaches the terminal: commands as remedies, one line, and no notices of other libraries."""

from __future__ import annotations

import logging
import re
import warnings

import pytest
import torch
import typer
from rankedit_recipes.command_line.boundary import application, in_commands, one_line
from rankedit_recipes.command_line.errors import CommandError
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.concepts.commands import cli as concepts_cli
from rankedit_recipes.concepts.commands.remedies import REMEDIES as CONCEPTS
from rankedit_recipes.language.commands import cli as language_cli
from rankedit_recipes.language.commands.remedies import REMEDIES as LANGUAGE
from rankedit_recipes.perfusion.commands import cli as perfusion_cli
from rankedit_recipes.perfusion.commands.remedies import REMEDIES as PERFUSION
from rankedit_recipes.perfusion.commands.words import concept_file, derived_placeholder
from rankedit_recipes.perfusion.errors import PerfusionError
from typer.testing import CliRunner

import rankedit as rk
from tests.command_line.messages import messages

# What a program is told to write.
PYTHON = re.compile(r"\bpass \w+|\w+\.\w+\(|\bwith_\w+|pipe\b\)|\w+\(\.\.\.\)")
# Not reached by a command, which opens a pipeline of its own with nothing in it, or a model that is
# whole, gives one number for all rows of a batch, and whose methods have the names that they were
# asked for by.
NOT_REACHED = re.compile(
    r"concepts are already in this (pipeline|denoiser)|that has concepts in it|"
    r"an IP-Adapter is loaded|solves in its own way|rows of a batch|"
    r"settings were given for|are in the pipeline|the model is sharded"
)


RECIPES = {"perfusion": PERFUSION, "language": LANGUAGE, "concepts": CONCEPTS}


@pytest.mark.parametrize("recipe", RECIPES)
def test_remedies_of_the_recipe_are_commands_at_the_terminal(recipe):
    left = []
    for where, message in messages(recipe, recipe if recipe == "language" else "diffusion"):
        try:
            with in_commands(RECIPES[recipe]):
                raise rk.RankeditError(message)
        except rk.RankeditError as error:
            said = str(error)
        if PYTHON.search(said) and not NOT_REACHED.search(said):
            left.append(f"{where}: {said}")
    assert left == []


@pytest.mark.parametrize("remedies", RECIPES.values(), ids=RECIPES)
def test_every_remedy_is_of_a_message(remedies):
    every = [text for _, text in messages(*RECIPES, "diffusion", "library")]
    every += ["steps was 200, is 400"]  # of a list that the checkpoint makes
    every += ["; pass layers=[3, 4] to accept it"]  # of a warning
    unused = [pattern for pattern, _ in remedies if not any(re.search(pattern, t) for t in every)]
    assert unused == []


def run(error):
    app = application("tries", [(r"pass steps=(\d+)", r"give --steps \1")])

    @app.command()
    def first() -> None:
        raise error

    @app.command()
    def second() -> None:
        pass

    return CliRunner().invoke(app, ["first"])


def test_errors_are_translated_and_kept():
    said = run(rk.SolveError("too few,\n  pass steps=100.")).exception
    assert isinstance(said, CommandError)
    assert str(said) == "too few, give --steps 100."
    assert isinstance(run(rk.SolveError("as it is")).exception, rk.SolveError)
    assert isinstance(run(ValueError("a fault of ours")).exception, ValueError)


def test_ctrl_c_says_how_to_go_on():
    with pytest.raises(typer.Exit) as end, in_commands(PERFUSION):
        raise KeyboardInterrupt(
            "learn: interrupted; make the same call again to go on from 'a.run/c.safetensors'"
        )
    assert end.value.exit_code == 130
    stopped = run(KeyboardInterrupt("stopped; pass steps=3"))
    assert stopped.exit_code == 130
    assert "rankedit: stopped; give --steps 3" in stopped.output


def test_too_little_memory_names_what_saves_it():
    said = str(run(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")).exception)
    assert "--offload model" in said
    assert "\n" not in said


def test_what_others_say_is_cut_to_a_line():
    assert one_line(ValueError("\n first. \n second")) == "first"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 9000))) < 310


def test_imports_are_quiet_and_loading_is_not(caplog):
    logger = logging.getLogger("some_library.parts")
    with quiet_imports():
        logger.warning("torchvision is not installed")
        warnings.warn("old", FutureWarning, stacklevel=1)
        logger.error("broken")
    logger.warning("weights are missing")
    assert [record.message for record in caplog.records] == ["broken", "weights are missing"]


def test_words_and_files_of_concepts(tmp_path):
    assert derived_placeholder(tmp_path / "Grand Bean_2", None) == "<grand-bean-2>"
    assert derived_placeholder(tmp_path / "photos", tmp_path / "mug.safetensors") == "<mug>"
    assert derived_placeholder(tmp_path / "cat.jpeg", None) == "<cat>"
    with pytest.raises(PerfusionError, match="give --placeholder"):
        derived_placeholder(tmp_path / "猫", None)
    assert str(concept_file("<bean>")) == "bean.safetensors"


@pytest.mark.parametrize(
    "app",
    [perfusion_cli.app, language_cli.app, concepts_cli.app],
    ids=["perfusion", "language", "concepts"],
)
def test_the_help_of_every_option_has_its_default(app):
    group = typer.main.get_command(app)
    lacking = []
    for name, command in group.commands.items():
        said = CliRunner(env={"COLUMNS": "300"}).invoke(app, [name, "--help"]).output
        for option in command.params:
            flag = getattr(option, "is_flag", False)
            if option.param_type_name == "argument" or option.required or flag:
                continue
            begins = re.compile(rf"^\W*{option.opts[0]}\b")
            line = next(line for line in said.splitlines() if begins.search(line))
            if "[default:" not in line:
                lacking.append(f"{name} {option.opts[0]}")
    needed = {"learn --category", "undo --last"}
    assert set(lacking) <= needed
