"""The command line, on the sandbox's model."""

import json
from pathlib import Path

import pytest
from rankedit_recipes import concepts
from rankedit_recipes.command_line.errors import CommandError
from rankedit_recipes.concepts.commands import cli, opening, tasks
from typer.testing import CliRunner

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS

METHOD = ("--method", "uce")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Commands in an empty folder, on a tiny pipeline in the sandbox's place."""
    monkeypatch.chdir(tmp_path)
    made = pipelines.stable_diffusion()
    monkeypatch.setattr(tasks, "open_pipeline", lambda choice: made)
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))

    def invoke(*arguments):
        result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return invoke


def test_an_edit_is_made_listed_extended_undone_and_exported(run, tmp_path):
    said = run("erase", "cat", "--to", "dog", "--hold", "cup", "--out", "a.safetensors", *METHOD)
    assert "erase cat to dog" in said
    assert "hold cup" in said
    run("replace", "blue", "red", "--onto", "a.safetensors", "--out", "b.safetensors")
    listed = run("list", "b.safetensors")
    assert "replace blue to red" in listed
    assert "method uce" in listed
    run("undo", "b.safetensors", "blue", "--out", "c.safetensors")
    one, other = (concepts.Edited.load(f"{n}.safetensors").map.delta() for n in "ac")
    assert float((one - other).norm()) < 1e-9 * float(one.norm())
    assert "rank 2" in run("export", "b.safetensors", "--lora", "lora.safetensors")
    assert rk.from_lora("lora.safetensors", component="unet",
                        modules=dict(tasks.open_pipeline(None).unet.named_modules()))  # fmt: skip
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


@pytest.mark.parametrize(
    "given", [("--method", "time"), ("--set", "weight=7.0"), ("--method", "covariance")]
)
def test_another_method_than_that_of_the_edit_is_not_taken_for_it(run, given):
    run("erase", "cat", "--to", "dog", "--out", "a.safetensors", *METHOD)
    with pytest.raises(
        rk.RankeditError, match="--onto goes on with the method 'uce' and the settings"
    ):
        run("erase", "cup", "--onto", "a.safetensors", "--out", "b.safetensors", *given)
    assert not Path("b.safetensors").exists()
    run("erase", "cup", "--onto", "a.safetensors", "--out", "c.safetensors", *METHOD)


def test_two_methods_are_refused(run):
    Path("time.toml").write_text('method = "time"')
    for also in (("--config", "time.toml"), ("--set", "method=time")):
        with pytest.raises(rk.RankeditError, match="--method says 'uce', and --config or --set"):
            run("erase", "cat", *METHOD, *also)
    said = run("erase", "cat", "--config", "time.toml", "--print-config")
    assert said == run("erase", "cat", "--method", "time", "--print-config")


def test_an_edit_under_the_covariance_is_undone_with_its_captions(run):
    given = ("--captions", "captions.txt")
    run("erase", "cat", *given, "--out", "a.safetensors")
    run("erase", "dog", *given, "--onto", "a.safetensors", "--out", "b.safetensors")
    run("undo", "b.safetensors", "dog", *given, "--out", "c.safetensors")
    one, other = (concepts.Edited.load(f"{n}.safetensors").map.delta() for n in "ac")
    assert float((one - other).norm()) < 1e-9 * float(one.norm())
    Path("other.txt").write_text("a cat")
    with pytest.raises(CommandError, match="give the same --captions"):
        run("undo", "b.safetensors", "dog", "--captions", "other.txt", "--out", "d.safetensors")


def test_a_dry_run_writes_nothing_and_says_what_it_would_cost(run, tmp_path):
    said = run("erase", "cat", "--dry-run", "--captions", "captions.txt")
    assert "erase cat to nothing" in said
    assert "128 captions to encode" in said
    assert "nothing was written" in said
    assert not list(tmp_path.glob("*.safetensors"))


def test_settings_come_from_a_file_and_from_what_is_typed(run, tmp_path):
    printed = run("erase", "cat", "--print-config", *METHOD, "--set", "weight=2.0")
    (tmp_path / "own.toml").write_text(printed)
    run("erase", "cat", "--config", "own.toml", "--set", "preserve=3.0", "--out", "a.safetensors")
    settings = concepts.Edited.load("a.safetensors").settings
    assert (settings.method, settings.weight, settings.preserve) == ("uce", 2.0, 3.0)
    assert json.dumps(settings.to_dict())


def test_pictures_of_the_same_noise_with_and_without(run, tmp_path):
    run("erase", "cat", "--out", "a.safetensors", *METHOD)
    said = run("evaluate", "a.safetensors", "--prompt", "a photo of a cat", "--pictures", "2",
               "--sampling-steps", "1", "--out", "shown")  # fmt: skip
    assert said.count("changed by") == 2
    assert len(list((tmp_path / "shown").rglob("*.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("erase", "cat", "--method", "esd"), "unknown method 'esd'"),
        (("erase", "cat", "--set", "nonsense=1"), "unknown settings nonsense"),
        (("erase", "cat", "--set", "weight=0"), "out of range"),
        (("replace", "cat", "cat"), "cannot become itself"),
        (("erase", "cat", "--hold", "cat", *METHOD), "is in two requests"),
        (("list", "captions.txt"), "captions.txt"),
        (("erase", "cat", "--out", "captions.txt", *METHOD), "add --overwrite"),
        (("export", "captions.txt", "--lora", "x", "--layout", "y"), "--layout must be"),
    ],
)
def test_what_is_wrong_is_refused_in_words_of_the_command_line(run, arguments, said):
    with pytest.raises(rk.RankeditError, match=said):
        run(*arguments)


def test_the_sandboxs_captions_are_the_same_each_time():
    assert opening.sandbox_captions(5) == opening.sandbox_captions(5)
    assert opening.open_captions(None, "sandbox")[:5] == opening.sandbox_captions(2000)[:5]
    assert len(opening.open_captions(None, "other")) > 100
