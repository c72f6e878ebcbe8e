"""The command line, on the sandbox's model."""

import json
import re
from pathlib import Path

import pytest
from rankedit_recipes import concepts
from rankedit_recipes.command_line.errors import CommandError
from rankedit_recipes.concepts.commands import cli, opening, showing, steering, tasks
from safetensors.torch import load_file
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
    for module in (tasks, showing, steering):
        monkeypatch.setattr(module, "open_pipeline", lambda choice: made)
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
    said = run("undo", "b.safetensors", "blue", "--out", "c.safetensors", "--dry-run")
    assert "stays: erase cat to dog" in said
    assert not Path("c.safetensors").exists()
    run("undo", "b.safetensors", "blue", "--out", "c.safetensors")
    [less] = re.findall(r"([\d,]+) bytes smaller", said)
    sizes = [Path(f"{name}.safetensors").stat().st_size for name in "bc"]
    assert 0 < int(less.replace(",", "")) <= sizes[0] - sizes[1]
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


def test_a_dry_run_counts_what_is_read_beside_a_concept(run):
    def told(*arguments):
        said = run("erase", "cat", *arguments, "--dry-run", "--captions", "captions.txt")
        prompts, size = (
            re.search(r"(\d+) prompts to encode", said),
            re.search(r"most ([\d,]+)", said),
        )
        return int(prompts[1]), size[1]

    nothing, size = told()
    # Each prompt with the word has one with each of eight neighbours beside it, or with one goal.
    assert nothing % 9 == 0
    assert told("--to", "tree") == (nothing // 9 * 2, size)
    # What is held is read, and takes nothing of the map.
    held, same = told("--hold", "dog")
    assert (held - nothing, same) == (nothing // 9, size)


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
               "--prompt", "a dog <b>", "--sampling-steps", "1", "--out", "shown")  # fmt: skip
    assert said.count("changed by") == 4
    assert len(list((tmp_path / "shown").rglob("*.png"))) == 8
    page = (tmp_path / "shown" / "report.html").read_text()
    assert page.count("<img") == 8
    assert page.index("What was edited") < page.index(">a photo of a cat<")
    assert page.index(">a photo of a cat<") < page.index("What was kept")
    assert page.index("What was kept") < page.index(">a dog &lt;b&gt;<")
    assert "seed 1, after" in page
    with pytest.raises(CommandError, match="add --overwrite"):
        run("evaluate", "a.safetensors", "--prompt", "a photo of a cat", "--out", "shown")


def test_a_strength_of_nothing_changes_nothing(run):
    run("erase", "cat", "--out", "a.safetensors", *METHOD)
    said = run("evaluate", "a.safetensors", "--prompt", "a photo of a cat", "--pictures", "1",
               "--sampling-steps", "1", "--strength", "0")  # fmt: skip
    assert "changed by 0.000" in said


def test_what_would_be_shown_and_exported_is_said_with_its_size(run, tmp_path):
    run("erase", "cat", "--out", "a.safetensors", *METHOD)
    said = run("evaluate", "a.safetensors", "--prompt", "a cat", "--prompt", "a dog", "--dry-run")
    assert "8 pictures of 25 steps to make" in said
    said = run("probe", "a.safetensors", "--implicit", "cat=a pet", "--dry-run")
    assert "1 description" in said
    said = run("export", "a.safetensors", "--lora", "lora.safetensors", "--dry-run")
    run("export", "a.safetensors", "--lora", "real.safetensors")
    [size] = re.findall(r"about ([\d,]+) bytes", said)
    factors = {n: t for n, t in load_file("real.safetensors").items() if "alpha" not in n}
    assert int(size.replace(",", "")) == sum(t.nbytes for t in factors.values())
    assert {p.name for p in tmp_path.iterdir()} == {"captions.txt", "a.safetensors",
                                                    "real.safetensors"}  # fmt: skip


def test_a_gated_edit_is_made_listed_undone_and_not_exported(run):
    words = ("--context", "a photo of a {} on the grass", "--captions", "captions.txt")
    run("erase", "cat", "--gate", *words, "--out", "a.safetensors")
    assert "% of cat" in run("list", "a.safetensors")
    assert concepts.Edited.load("a.safetensors").gate is not None
    for wrong, said in (
        (("export", "a.safetensors", "--lora", "x.safetensors"), "make the edit without --gate"),
        (("erase", "dog", "--onto", "a.safetensors", "--captions", "captions.txt", "--out",
          "b.safetensors"), "add to the edit without --gate, and give --gate again"),
    ):  # fmt: skip
        with pytest.raises(CommandError, match=said):
            run(*wrong)
    said = run("erase", "cat", "--gate", "--dry-run", *METHOD, "--captions", "captions.txt")
    assert "128 captions to encode" in said


BALANCED = ("debias", "cat", "--share", "red=0.5", "--hold", "dog", "--pictures", "4",
            "--sampling-steps", "1", "--judge", "some/clip", *METHOD)  # fmt: skip


@pytest.fixture
def clip(monkeypatch):
    """What stands for a CLIP model, which has to be fetched."""
    told = []

    def judge(_):
        def name(pictures, request):
            return told.pop(0)

        return name

    monkeypatch.setattr(steering, "open_clip", lambda name: name)
    monkeypatch.setattr(steering, "ClipJudge", judge)
    return told


@pytest.mark.filterwarnings("ignore:.*a share of 'cat' is still")
def test_shares_are_steered_and_gone_on_with(run, clip):
    clip += [[""] * 4, ["red", "", "", ""], [""] * 4]
    said = run(*BALANCED, "--rounds", "2", "--out", "a.safetensors")
    assert "balance cat to red 50% (measured 0%)" in said
    assert concepts.Edited.load("a.safetensors").requests[0].amounts == (0.5,)
    clip += [["red", "red", "", ""], ["red", "red", "red", ""]]
    said = run(*BALANCED, "--resume", "--out", "a.safetensors")
    assert "measured 75%" in said
    found = concepts.Edited.load("a.safetensors").requests[0]
    assert found.amounts == (0.5,)
    with pytest.raises(rk.RankeditError, match="give the same words, shares and settings"):
        run(*BALANCED, "--share", "blue=0.2", "--resume", "--out", "a.safetensors")
    with pytest.raises(rk.RankeditError, match="there is nothing to resume"):
        run(*BALANCED, "--resume", "--out", "b.safetensors")
    with pytest.raises(CommandError, match="add --overwrite"):
        run(*BALANCED, "--out", "a.safetensors")


def test_ctrl_c_says_how_to_go_on(run, monkeypatch):
    shown = []

    def judge(pictures, request):
        shown.append(request)
        if len(shown) == 2:
            raise KeyboardInterrupt
        return [""] * len(pictures)

    monkeypatch.setattr(steering, "open_clip", lambda name: name)
    monkeypatch.setattr(steering, "ClipJudge", lambda _: judge)
    result = CliRunner().invoke(cli.app, [*BALANCED, "--out", "a.safetensors"])
    assert result.exit_code == 130
    assert "after 1 round; 'a.safetensors' has the best of them. Give the same command with " in (
        result.output
    )
    assert Path("a.safetensors").exists()


def test_a_dry_run_of_debiasing_says_what_it_takes(run, tmp_path):
    said = run(*BALANCED, "--rounds", "2", "--dry-run")
    assert "balance cat to red 50%" in said
    assert "at most 12 pictures of 1 step to make" in said
    assert "weight = 0.5" in run(*BALANCED, "--print-config")
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("erase", "cat", "--method", "esd"), "unknown method 'esd'"),
        (("erase", "cat", "--set", "nonsense=1"), "unknown settings nonsense"),
        (("erase", "cat", "--set", "weight=0"), "out of range"),
        (("replace", "cat", "cat"), "cannot become itself"),
        (("erase", "cat", "--hold", "cat", *METHOD), "is in two requests"),
        (("list", "captions.txt"), "captions.txt"),
        (("undo", "captions.txt", "cat", "--dry-run"), "captions.txt"),
        (("erase", "cat", "--out", "captions.txt", *METHOD), "add --overwrite"),
        (("export", "captions.txt", "--lora", "x", "--layout", "y"), "--layout must be"),
        (("debias", "cat", "--share", "red"), "--share takes each attribute once"),
        (("debias", "cat", "--share", "red=1", "--share", "red=0"), "each attribute once"),
        (("debias", "cat", "--share", "red=much"), "--share takes each attribute once"),
        (("debias", "cat", "--share", "red=2"), "each from 0 to 1"),
        (("debias", "dog", "--share", "red=1"), "give --judge openai/clip-vit-base-patch32"),
        (("debias", "car", "--share", "red=1", "--model", "x"), "give one, such as --judge"),
        (
            ("debias", "car", "--share", "red=1", "--step", "-1"),
            r"debias: out of range: \{'step': -1.0\}; see rankedit concepts debias --help",
        ),
        (
            ("debias", "cat", "--share", "red=1", "--context", "a red {}", *METHOD),
            "names one of its attributes .*; give --context 'a photo of a {}' without them",
        ),
        (("probe", "captions.txt", "--implicit", "cat"), "takes concept=description"),
        (("probe", "captions.txt", "--model", "x"), "give one, such as --judge"),
    ],
)
def test_what_is_wrong_is_refused_in_words_of_the_command_line(run, arguments, said):
    with pytest.raises(rk.RankeditError, match=said):
        run(*arguments)


def test_a_method_of_values_alone_is_refused_for_joint_models_with_another(run, monkeypatch):
    monkeypatch.setattr(tasks, "open_pipeline", lambda choice: pipelines.stable_diffusion_3())
    with pytest.raises(CommandError, match="attend jointly; give --method covariance or uce"):
        run("erase", "cat", "--hold", "dog", "--method", "speed")
    with pytest.warns(rk.RankeditWarning, match="in a pooled vector too"):
        said = run("erase", "cat", "--dry-run", *METHOD)
    assert "1 projection of SD3Transformer2DModel" in said


def test_what_was_probed_is_judged_by_what_the_judge_knows(run):
    run("erase", "dog", "--out", "a.safetensors", *METHOD)
    with pytest.raises(CommandError, match="not 'dog'; give --judge"):
        run("probe", "a.safetensors")
    run("erase", "cat", "--out", "b.safetensors", *METHOD)
    with pytest.raises(CommandError, match="give --among dog"):
        run("probe", "b.safetensors", "--judge", "some/clip")
    said = run("probe", "b.safetensors", "--pictures", "1", "--sampling-steps", "1",
               "--implicit", "cat=a red cup", "--neighbours", "1")  # fmt: skip
    assert re.search(r"cat, implicit: \d+% before", said)
    assert Path("probe.html").read_text().count("<img") >= 2


def test_a_concept_is_taught_anew_and_gone_on_with(run):
    run("erase", "cat", "--out", "a.safetensors", *METHOD)
    asked = ("probe", "a.safetensors", "--pictures", "1", "--sampling-steps", "1",
             "--neighbours", "0", "--teach", "0, 1", "--run", "kept")  # fmt: skip
    assert "looked at after 0, 1 steps" in run(*asked, "--dry-run")
    assert not Path("kept").exists()
    said = run(*asked)
    assert re.search(
        r"cat, textual inversion: .* before the edit; \d+% after 0, \d+% after 1", said
    )
    # Behind the progress, which tells the time.
    assert run(*asked, "--overwrite").splitlines()[1:] == said.splitlines()[1:]
    for wrong in ("1,0", "0,x", "0,,1", "-1"):
        with pytest.raises(concepts.ConceptsError, match="--teach takes whole numbers that rise"):
            run("probe", "a.safetensors", "--teach", wrong, "--out", "other.html")


def test_the_sandboxs_captions_are_the_same_each_time():
    assert opening.sandbox_captions(5) == opening.sandbox_captions(5)
    assert opening.open_captions(None, "sandbox")[:5] == opening.sandbox_captions(2000)[:5]
    assert len(opening.open_captions(None, "other")) > 100
