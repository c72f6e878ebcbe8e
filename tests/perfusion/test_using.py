"""Explaining, sweeping, exporting, reporting, and the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes import perfusion
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.diffusion.generating import Sampling
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.scoring import Scores
from rankedit_recipes.perfusion.commands import cli, opening, studying, tasks
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.masks import masked
from rankedit_recipes.perfusion.learning.photos import Photo
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import origin_encoding
from rankedit_recipes.perfusion.showing.sweeping import Point, pareto_front, sweep
from typer.testing import CliRunner

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import TEMPLATES, random_concept

SMALL = Sampling(steps=1, size=16)


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def bean(pipe):
    return random_concept(pipe)


def brightness(pictures, prompts, photos):
    """Scores that depend on the pictures, so that a sweep has something to trade."""
    mean = float(np.mean([np.asarray(picture).mean() for picture in pictures])) / 255
    return Scores(picture=mean, text=1 - mean)


def test_explain_gives_the_gate_of_the_equations(pipe, bean):
    with pytest.raises(PerfusionError, match="no concept is in this pipeline"):
        perfusion.explain(pipe, "a cat")
    with perfusion.apply(pipe, bean, bias=0.5) as applied:
        applied.set(bias=0.65, temperature=0.2)
        found = perfusion.explain(pipe, "a photo of a <bean>", show=False)
        with pytest.raises(PerfusionError, match="at least one word"):
            perfusion.explain(pipe, " ")
        with torch.no_grad():
            read = pipe.encode_prompt("a photo of a <bean>", "cpu", 1, False)[0][0].double()
    energy = (bean.key.double() * bean.image.double()).sum()
    similarity = read @ bean.image.double() / energy
    torch.testing.assert_close(found.similarity["values"][:, 0], similarity)
    wanted = torch.sigmoid((similarity - 0.65) / 0.2)
    torch.testing.assert_close(found.opening["keys"][:, 0], wanted, rtol=1e-5, atol=1e-7)
    assert found.tokens[5] == "<bean>"
    assert found.leak("<bean>") == pytest.approx(float(wanted[torch.arange(24) != 5].max()))


def test_the_table_and_the_plot_show_words_and_gates(pipe, bean, capsys):
    with perfusion.apply(pipe, bean, lock="global"):
        found = perfusion.explain(pipe, "a photo of a <bean>")
    printed = capsys.readouterr().out
    assert "<bean>" in printed
    assert "padding" in printed
    assert not torch.equal(found.opening["keys"], found.opening["values"])
    assert len(found.plot().axes) == 2


def test_the_front_has_the_points_that_nothing_beats():
    points = [
        Point(i, 0.1, Scores(p, t)) for i, (p, t) in enumerate([(1, 3), (2, 2), (1, 1), (3, 1)])
    ]
    front = pareto_front(points)
    assert [p.bias for p in front] == [0, 1, 3]
    assert Scores(0.5, 1.0).balance == pytest.approx(2 / 3)
    assert Scores(-0.1, 1.0).balance == 0


def test_a_sweep_gives_what_each_setting_gives_alone(pipe, bean):
    points = sweep(
        pipe, bean, [], brightness, prompts=("a photo of a {}",), biases=(0.2, 0.9),
        temperatures=(0.1,), seeds=(1, 2), sampling=SMALL, progress=False,
    )  # fmt: skip
    with perfusion.apply(pipe, bean, bias=0.9, temperature=0.1):
        alone = brightness(
            perfusion.generate(pipe, ["a photo of a <bean>"] * 2, [1, 2], SMALL), 0, 0
        )
    assert [p.bias for p in points] == [0.2, 0.9]
    assert points[1].scores == alone
    assert points[0].scores != alone


def test_a_picture_does_not_depend_on_its_batch(pipe):
    prompts = ["a cat", "a dog", "a cup"]
    together = perfusion.generate(pipe, prompts, [4, 5, 6], dataclasses.replace(SMALL, batch=3))
    alone = perfusion.generate(pipe, prompts[1:2], [5], SMALL)
    difference = np.abs(np.asarray(together[1], float) - np.asarray(alone[0], float))
    assert difference.max() <= 1


def test_the_exported_word_loads_into_diffusers(bean, tmp_path):
    fresh = pipelines.stable_diffusion()
    fresh.tokenizer = __import__("copy").deepcopy(fresh.tokenizer)
    perfusion.export_embedding(bean, tmp_path / "word.safetensors")
    fresh.load_textual_inversion(str(tmp_path / "word.safetensors"))
    token = fresh.tokenizer.convert_tokens_to_ids("<bean>")
    torch.testing.assert_close(
        fresh.text_encoder.get_input_embeddings().weight[token].detach(), bean.embeddings[0]
    )


def test_the_exported_lora_is_the_linearised_edit(pipe, bean, tmp_path):
    error = perfusion.export_lora(pipe, bean, tmp_path / "bean.safetensors", layout="kohya")
    assert 0 < error < 5
    targets = perfusion.find_targets(pipe)
    names = [*targets.keys, *targets.values]
    edits = rk.from_lora(tmp_path / "bean.safetensors", component="unet", modules=names)
    assert len(edits) == len(targets.keys) + len(targets.values)
    # Exactly at the key the linear edit gives the target in full.
    name = targets.keys[0]
    layer = targets.modules(pipe.unet)[name]
    key = bean.key[None]
    category = origin_encoding(Parts(pipe), Naming("<bean>", "cat"), TEMPLATES)[None]
    flat = next(e for n, e in edits.items() if n.replace(".", "_").endswith(name.replace(".", "_")))
    torch.testing.assert_close(
        key @ flat.delta().T + layer(key), layer(category), atol=1e-4, rtol=1e-3
    )


def test_masks_from_words_are_for_photos_without_one():
    grey = Image.new("L", (4, 4), 7)
    photos = [Photo("a", Image.new("RGB", (4, 4)), grey), Photo("b", Image.new("RGB", (4, 4)))]
    found = masked(photos, "cat", lambda image, words: Image.new("L", image.size, len(words)))
    assert [photo.mask.getpixel((0, 0)) for photo in found] == [7, 3]


def test_clipseg_and_clip_of_transformers():
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPSegConfig,
        CLIPSegForImageSegmentation,
        CLIPSegProcessor,
        ViTImageProcessorPil,
    )

    torch.manual_seed(0)
    tokenizer = pipelines.clip_tokenizer()
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 24,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    size = {"height": 32, "width": 32}
    scorer = perfusion.ClipScorer(
        model, CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size), tokenizer
    )
    scores = scorer([picture], ["a cat"], [picture])
    assert scores.picture == pytest.approx(1.0)
    assert -1 <= scores.text <= 1
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=16, extract_layers=[0, 1, 2],
        reduce_dim=8, decoder_num_attention_heads=2, decoder_intermediate_size=8,
    )  # fmt: skip
    segmenter = CLIPSegForImageSegmentation(config)
    processor = CLIPSegProcessor(ViTImageProcessorPil(size=size), tokenizer)
    mask = perfusion.ClipSegMasks(segmenter, processor)(picture, "a cat")
    assert mask.size == picture.size
    assert mask.mode == "L"


# ------------------------------------------------------------------------ the command line


@pytest.fixture
def world(monkeypatch, tmp_path, pipe):
    monkeypatch.setattr(opening, "open_pipeline", lambda *_, **__: pipe)
    monkeypatch.setattr(opening, "open_captions", lambda *_: CAPTIONS)
    monkeypatch.setattr(tasks, "check_category", lambda *_: None)
    monkeypatch.setattr(studying, "check_category", lambda *_: None)
    monkeypatch.setattr(opening, "open_scorer", lambda *_: brightness)
    (tmp_path / "photos").mkdir()
    for index in range(2):
        Image.new("RGB", (20, 20), (index * 90, 40, 9)).save(tmp_path / "photos" / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(*arguments, fails=None):
    result = CliRunner().invoke(cli.app, list(arguments))
    if fails is None:
        assert result.exception is None, (result.output, result.exception)
    else:
        assert isinstance(result.exception, rk.RankeditError), (result.output, result.exception)
        assert fails in str(result.exception)
    return result.output


@pytest.mark.parametrize(
    "call",
    [["generate", "--prompt", "a <bean>"], ["explain", "--prompt", "a <bean>"],
     ["export", "--lora", "l.safetensors"], ["sweep", "--photos", "photos"],
     ["evaluate", "--photos", "photos"]],
    ids=lambda call: call[0],
)  # fmt: skip
def test_every_command_opens_the_model_where_and_as_it_is_told(world, monkeypatch, bean, call):
    def opened(choice):
        raise PerfusionError(f"opened {choice}")

    monkeypatch.setattr(opening, "open_pipeline", opened)
    bean.save("bean.safetensors")
    chosen = ModelChoice("sandbox", "cpu", "bfloat16", "fp16", "sequential", "base")
    ran(*call, "bean.safetensors", "--device", "cpu", "--dtype", "bfloat16", "--variant", "fp16",
        "--offload", "sequential", "--base", "base", fails=f"opened {chosen}")  # fmt: skip


def test_statistics_of_captions_in_shards_are_those_of_all(world, pipe):
    ran("stats", "--out", "whole.safetensors")
    for index in "12":
        said = ran("stats", "--out", "part.safetensors", "--shard", f"{index}/2")
    assert "rankedit stats merge part-*-of-00002.safetensors --out FILE" in said
    files = sorted(world.glob("part-*"))
    merged = rk.merge_shards(files)
    whole = rk.load("whole.safetensors")[""]
    apart = (merged[""].together().matrix - whole.together().matrix).norm()
    assert float(apart / whole.matrix.norm()) < 1e-6  # rows of another batch round differently
    assert merged[""].seen == whole.seen
    assert merged[""].provenance.corpus == whole.provenance.corpus
    rk.save_merged(merged, "merged.safetensors")
    learn = ["learn", "photos", "--placeholder", "<bean>", "--category", "cat", "--steps", "1"]
    ran(*learn, "--statistics", "merged.safetensors")
    assert not list((world / "bean.run").glob("moment-*"))
    more = [*learn, "--overwrite", "--run", "other"]
    ran(*more, "--statistics", "merged.safetensors", "--set", "tokens=eos", fails="--tokens eos")
    ran(*more, "--statistics", "bean.safetensors", fails="make it with `rankedit perfusion stats")
    with pytest.warns(rk.RankeditWarning, match="holds 1 of 2 shards of its data"):
        ran(*more, "--statistics", str(files[0]))
    ran("stats", "--shard", "129/129", "--out", "x", fails="take no more shards than there are")
    other = rk.load("merged.safetensors")
    other[""].provenance = replace(other[""].provenance, weights="others")
    rk.save_merged(other, "merged.safetensors")
    more[-1] = "third"
    ran(*more, "--statistics", "merged.safetensors", fails="with another text encoder or tokenizer")


def test_many_concepts_are_learned_in_parts_with_one_table(world, monkeypatch):
    entry = 'photos = "photos"\ncategory = "cat"\n'
    text = f"[bean]\n{entry}\n[mug]\n{entry}settings = {{ steps = 2 }}\n"
    (world / "list.toml").write_text(text)
    many = ["learn-many", "list.toml", "--set", "steps=1", "--set", 'templates=["a {}"]',
            "--set", "batch=1"]  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    said = ran(*many, "--shard", "auto")
    assert "| mug | not yet |" in said
    assert not (world / "concepts" / "mug.safetensors").exists()
    monkeypatch.setenv("RANK", "1")
    ran(*many, "--shard", "auto")
    table = (world / "concepts" / "table.md").read_text()
    assert [line.split(" | ")[:3] for line in table.splitlines()[2:]] == [
        ["| bean", "<bean> cat", "1"], ["| mug", "<mug> cat", "2"],
    ]  # fmt: skip
    assert "word: <mug>, a cat" in ran("info", "concepts/mug.safetensors")
    first = (world / "concepts" / "bean.safetensors").stat().st_mtime_ns
    assert ran(*many).count("there already") == 2
    assert (world / "concepts" / "bean.safetensors").stat().st_mtime_ns == first
    assert len(list((world / "concepts").glob("moment-*"))) == 1
    ran(*many, "--set", "steps=3", fails="is of another 'bean'")
    # One that fails stands in the table, and does not keep others from being learned.
    bad = f'[bad]\n{entry}placeholder = "cat"\n[late]\n{entry}'
    (world / "list.toml").write_text(bad)
    ran(*many, fails="1 concept could not be learned: bad; the table says why")
    table = (world / "concepts" / "table.md").read_text()
    assert "| bad | " in table
    assert "| late | <late> cat | 1 |" in table


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must have concepts of different words, got none"),
        ("[a", "is no TOML"),
        ('[a]\nphotos = "photos"', r"[a] of 'list.toml' must have photos and category"),
        ('[a]\nphotos = "photos"\ncategory = "cat"\nsteps = 3', "must have photos and category"),
        ('a = 3', "must have photos and category"),
        ('[a]\nphotos = "none"\ncategory = "cat"', "there is no file or folder 'none'"),
        ('[a]\nphotos = "photos"\ncategory = "cat"\nplaceholder = "<x>"\n'
         '[b]\nphotos = "photos"\ncategory = "cat"\nplaceholder = "<x>"', "two of '<x>'"),
        ('[a]\nphotos = "photos"\ncategory = "cat"\nsettings = {speed = 1}', "unknown setting"),
    ],
)  # fmt: skip
def test_lists_of_concepts_are_checked_before_a_model_is_opened(world, monkeypatch, text, said):
    monkeypatch.setattr(opening, "open_pipeline", lambda *_: pytest.fail("opened"))
    (world / "list.toml").write_text(text)
    ran("learn-many", "list.toml", fails=said)


def test_every_command_in_a_row(world):
    learn = ["learn", "photos", "--placeholder", "<bean>", "--category", "cat", "--steps", "2",
             "--set", 'templates=["a photo of a {}"]', "--set", "batch=2"]  # fmt: skip
    plan = ran(*learn, "--dry-run")
    assert "4 key and 4 value projections" in plan
    learned = [line for line in plan.splitlines() if line.startswith("  ")]
    assert f"outputs of these {len(learned)}; the other {8 - len(learned)} follow" in plan
    assert not (world / "bean.safetensors").exists()
    assert "steps = 2\n" in ran(*learn, "--print-config")
    assert "prompts say '<bean> cat'" in ran(*learn)
    ran(*learn, fails="'bean.safetensors' is there already; add --overwrite to replace it")
    ran(*learn, "--overwrite", fails="add --resume to go on")
    first = (world / "bean.safetensors").read_bytes()
    ran(*learn, "--resume", "--overwrite")
    assert (world / "bean.safetensors").read_bytes() == first
    assert "word: <bean>, a cat" in ran("info", "bean.safetensors")
    made = ran("generate", "bean.safetensors", "--prompt", "a <bean> cat", "--pictures", "2",
               "--sampling-steps", "1")  # fmt: skip
    assert len(made.split()) == 2
    with Image.open(made.split()[1]) as picture:
        assert picture.size == (16, 16)
        assert picture.text == {"Description": "a <bean> cat", "Seed": "1"}
    ran("explain", "bean.safetensors", "--prompt", "a <bean> cat", "--plot", "gate.png")
    assert "dead zone 0.6" in ran("info", "bean.safetensors")
    shut = ran("explain", "bean.safetensors", "--prompt", "a <bean> cat", "--floor", "9")
    wide = ran("explain", "bean.safetensors", "--prompt", "a <bean> cat", "--floor", "none")
    assert shut.count("0.000") > wide.count("0.000")
    ran("explain", "bean.safetensors", "--prompt", "a <bean> cat", "--floor", "low",
        fails="--floor must be a number, 'own' or 'none', got 'low'")  # fmt: skip
    with Image.open("gate.png") as picture:
        assert picture.size[0] > 100
    scores = ran("evaluate", "bean.safetensors", "--photos", "photos", "--pictures", "1",
                 "--sampling-steps", "1")  # fmt: skip
    assert "harmonic mean" in scores
    export = ["export", "bean.safetensors", "--embedding", "e.safetensors",
              "--lora", "l.safetensors", "--device", "cpu"]  # fmt: skip
    with pytest.warns(rk.RankeditWarning, match=r"is far from.*a LoRA has no gate") as told:
        exported = ran(*export)
    assert "differs from the gated one by" in exported
    assert not any("%" in str(warning.message) for warning in told)  # said once
    renamed = ran("rename", "bean.safetensors", "--placeholder", "<pea>")
    assert "prompts say '<pea> cat'" in renamed
    assert "word: <pea>, a cat" in ran("info", "pea.safetensors")
    ran("export", "bean.safetensors", fails="say what to write")
    front = ran("sweep", "bean.safetensors", "--photos", "photos", "--bias", "0.2", "--bias", "0.8",
                "--temperature", "0.1", "--sampling-steps", "1", "--run", "bean.run")  # fmt: skip
    assert "front, from text first" in front
    page = (world / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2 + 8 + 3
    assert "http" not in page.replace("http-equiv", "")
    assert "a photo of a &lt;bean&gt; cat" in page


def test_a_word_of_several_vectors_on_the_command_line(world):
    learn = ["learn", "photos", "--placeholder", "<bean>", "--category", "cat", "--steps", "1",
             "--set", 'templates=["a {}"]', "--set", "batch=2", "--vectors", "2"]  # fmt: skip
    assert "vectors = 2\n" in ran(*learn, "--print-config")
    ran(*learn, "--dry-run")
    assert "prompts say '<bean> cat'" in ran(*learn)
    told = ran("info", "bean.safetensors")
    assert "embeddings: 2 of each, 32 wide" in told
    shown = ran("explain", "bean.safetensors", "--prompt", "a <bean> cat")
    assert "<bean>_1" in shown
    ran("rename", "bean.safetensors", "--placeholder", "<pea>")
    made = ran("generate", "pea.safetensors", "--prompt", "a <pea> cat", "--pictures", "1",
               "--sampling-steps", "1")  # fmt: skip
    assert len(made.split()) == 1
    ran(*learn, "--placeholder", "zzbean", "--out", "z.safetensors",
        fails="'zzbean' cannot have 2 vectors")  # fmt: skip


def test_what_is_missing_is_said(world):
    ran("learn", fails="a folder of photos and --category are needed")
    ran("learn", "nowhere", "--category", "cat", fails="there is no file or folder 'nowhere'")
    ran("learn", "photos", "--category", "cat", "--resume", fails="nothing to resume")
    ran("learn", "photos", "--category", "cat", "--placeholder", "cat", fails="already a word")
    ran("learn", "photos", "--category", "cat", "--set", "steps", fails="--set takes name=value")


def test_words_of_no_concept_are_noticed(world, bean):
    bean.save(world / "bean.safetensors")
    for command in ("generate", "explain"):
        ran(command, "bean.safetensors", "--prompt", "a <beam> on grass",
            fails="no concept has the word '<beam>'")  # fmt: skip
    assert not (world / "pictures").exists()
    with pytest.warns(rk.RankeditWarning, match=r"'a cat' has none of the concepts' words"):
        ran("explain", "bean.safetensors", "--prompt", "a cat")


def test_pictures_of_other_models_need_a_judge_that_knows_them(world, bean):
    bean.save(world / "bean.safetensors")
    for command in ("evaluate", "sweep"):
        ran(command, "bean.safetensors", "--photos", "photos", "--model", "other",
            fails="knows only the sandbox's pictures; for those of 'other'")  # fmt: skip


def test_made_captions_are_many_and_the_same_each_time():
    captions = perfusion.make_captions(500)
    assert captions == perfusion.make_captions(500)
    assert len(set(captions)) > 450
    assert not any("{}" in caption for caption in captions)
