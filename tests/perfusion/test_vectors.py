"""Words of several vectors, as textual inversion has them."""

from __future__ import annotations

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from rankedit_recipes import perfusion
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import metric_of, second_moment
from rankedit_recipes.diffusion.words import NewWords, embedding_of
from rankedit_recipes.perfusion.applying.applied import in_use
from rankedit_recipes.perfusion.applying.apply import apply
from rankedit_recipes.perfusion.applying.explaining import explain
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning import training
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.learner import Learner
from rankedit_recipes.perfusion.learning.training import learn
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import origin_encoding

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import TEMPLATES, random_concept
from tests.perfusion.test_applying import inverse_of, oracle, recorded
from tests.perfusion.test_batches import close, pictures
from tests.perfusion.test_learning import photos

BEAN = ("<bean>", "<bean>_1", "<bean>_2")
PROMPT = "a photo of a <bean> next to a <mug>"


@functools.cache
def pipe_of(family):
    return getattr(pipelines, family)()


@pytest.fixture
def pipe():
    return pipe_of("stable_diffusion")


@functools.cache
def concepts():
    """One of three vectors, one of two."""
    pipe = pipe_of("stable_diffusion")
    bean = random_concept(pipe, vectors=3)
    return bean, random_concept(pipe, "<mug>", "teddy bear", seed=1, vectors=2)


# ------------------------------------------------------------------------------------ as tokens


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "pixart", "sana"])
def test_a_prompt_has_all_vectors_where_the_word_stands(family):
    pipe = pipe_of(family)
    texts = Parts(pipe).text
    before = texts.encode(["a cat on grass"]).embeds
    with apply(pipe, random_concept(pipe, vectors=3)) as applied:
        encoded = texts.encode(["a <bean> on grass", "a photo and a <bean>"])
        found = texts.positions(encoded, "<bean>")
        names = texts.names(encoded)
        assert names[found[0][0] - 2 : found[0][0] + 1] == list(BEAN)
        assert [len(row) for row in found] == [1, 1]
        for (_, _, tokenizer), table in zip(texts.encoders, encoded.tokens, strict=True):
            own = tokenizer.convert_tokens_to_ids(list(BEAN))
            assert [token for token in table[1].tolist() if token in own] == own
        assert texts.positions(texts.encode(["a <bean>, a <bean>"]), "<bean>")[0][1:]
        assert torch.equal(texts.encode(["a cat on grass"]).embeds, before)
        assert applied.concepts["<bean>"].vectors == 3
    assert "_written" not in vars(pipe.tokenizer)


def test_a_word_is_what_a_textual_inversion_of_its_vectors_is(pipe):
    other = pipelines.stable_diffusion()
    other.tokenizer = copy.deepcopy(other.tokenizer)
    bean, _ = concepts()
    other.load_textual_inversion({"<bean>": bean.embeddings[0]})
    prompts = ["a <bean> on grass", "my <bean> and a <bean>"]
    with apply(pipe, bean):
        assert pipe.maybe_convert_prompt("a <bean>", pipe.tokenizer) == f"a {' '.join(BEAN)}"
        found = Parts(pipe).text.encode(prompts).embeds
        twin = copy.deepcopy(pipe.tokenizer)
        assert twin("a <bean>").input_ids == pipe.tokenizer("a <bean>").input_ids
    assert torch.equal(found, Parts(other).text.encode(prompts).embeds)


def test_an_exported_word_loads_into_diffusers(pipe, tmp_path):
    bean, _ = concepts()
    perfusion.export_embedding(bean, tmp_path / "word.safetensors")
    other = pipelines.stable_diffusion()
    other.tokenizer = copy.deepcopy(other.tokenizer)
    other.load_textual_inversion(str(tmp_path / "word.safetensors"))
    ids = other.tokenizer.convert_tokens_to_ids(list(BEAN))
    rows = other.text_encoder.get_input_embeddings().weight[ids].detach()
    torch.testing.assert_close(rows, bean.embeddings[0])


@pytest.mark.parametrize("family", ["stable_diffusion", "pixart"])
def test_a_word_that_is_cut_off_is_refused(family):
    pipe = pipe_of(family)
    concept = random_concept(pipe, vectors=3)
    room = pipe.tokenizer.model_max_length - (2 if family == "stable_diffusion" else 1)
    more = {"use_resolution_binning": False, "max_sequence_length": room + 1}
    if family == "stable_diffusion":
        more = {}
    with apply(pipe, concept):
        pictures(pipe, "a " * (room - 3) + "<bean>", [0], num_inference_steps=1, **more)
        for missing in (1, 2):
            long = "a " * (room - 3 + missing) + "<bean>"
            message = f"'<bean>' has 3 vectors.*hold {3 - missing} of them alone: it was cut off"
            with pytest.raises(PipelineError, match=message):
                pictures(pipe, long, [0], num_inference_steps=1, **more)
        with pytest.raises(PipelineError, match="or names one by itself"):
            Parts(pipe).text.encode(["a <bean>_2"])
    # PixArt's own encoding takes 120 tokens, whatever the tokenizer says.
    long = "a " * ((room if family == "stable_diffusion" else 119) - 5) + "photo of a {}"
    with pytest.raises(PipelineError, match="'<bean>' has 3 vectors"):
        taught(pipe, vectors=3, templates=(long,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"<bean>": 3, "<bean>_1": 1}, "'<bean>' and '<bean>_1' cannot both be words"),
        ({"<bean>_1": 1, "<bean>": 3}, "cannot both be words"),
        ({"<bean>": 3, "<bean>_7": 1}, "'<bean>_7' and '<bean>' cannot both be words"),
        ({"<bean>": 2, "<bean>_2": 1}, "cannot both be words"),
        ({"<bean>": 1, "<bean>_1": 3}, "'<bean>_1' cannot have 3 vectors.*such as '<bean-1>'"),
        ({"<bean>": 2, "<bean>_1": 3}, "cannot have 3 vectors"),
        ({"<a_1>": 2, "<a_1>_1": 1}, "cannot both be words.*such as '<a-1"),
        ({"mush": 2}, r"'mush' cannot have 2 vectors.*such as '<mush>'"),
        ({"<mush": 1, "mush>": 2}, "'mush>' cannot have 2 vectors"),
    ],
)
def test_words_that_look_like_vectors_of_another_are_refused(pipe, words, message):
    before = pipe.tokenizer
    made = [
        random_concept(pipe, word, "cat", seed, vectors=count)
        for seed, (word, count) in enumerate(words.items())
    ]
    with pytest.raises(PipelineError, match=message):
        apply(pipe, made)
    assert pipe.tokenizer is before
    assert pipe not in in_use


@pytest.mark.parametrize("taken", ["<bean>_1", "<bean>_2", "<bean>_3"])
def test_vectors_that_are_words_of_the_tokenizer_already_are_refused(taken):
    pipe = pipelines.stable_diffusion()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.load_textual_inversion({taken: torch.randn(1, 32)})
    with pytest.raises(PipelineError, match=f"'<bean>' and '{taken}' cannot both be words"):
        apply(pipe, random_concept(pipe, vectors=3))
    apply(pipe, random_concept(pipe, "<pea>", vectors=3)).detach()


def test_more_vectors_than_a_prompt_has_room_for_are_refused(pipe):
    with pytest.raises(PipelineError, match=r"cannot have 23 vectors.*cuts prompts at 24 tokens"):
        taught(pipe, vectors=23)


def test_rows_of_different_numbers_are_refused():
    texts = Parts(pipe_of("stable_diffusion_xl")).text
    for rows in ([torch.zeros(2, 32), torch.zeros(3, 64)], [torch.zeros(32), torch.zeros(2, 64)]):
        with pytest.raises(PipelineError, match="as many vectors in each text encoder"):
            NewWords(texts, {"<bean>": rows})


# ------------------------------------------------------------------------------- as joint edits


@pytest.mark.parametrize("count", [1, 2])
def test_every_projection_gives_what_the_equations_say_of_all_keys(pipe, count):
    chosen = concepts()[:count]
    biases, temperatures = [0.6, 0.8][:count], [0.15, 0.1][:count]
    targets, modules = Parts(pipe).targets, Parts(pipe).projections
    weights = {name: module.weight.detach().clone() for name, module in modules.items()}
    near = [origin_encoding(Parts(pipe), c.naming, c.templates) for c in chosen]
    inverse = inverse_of(pipe)
    spread = [i for i, c in enumerate(chosen) for _ in range(c.vectors)]
    with apply(pipe, chosen, bias=biases, temperature=temperatures):
        seen = recorded(pipe, PROMPT if count == 2 else "a photo of a <bean>")
    for name, calls in seen.items():
        wanted = [row for c in chosen for row in torch.atleast_2d(c.targets.get(name, c.key))]
        if name in targets.keys:  # locked for each token
            wanted = [near[i] @ weights[name].T for i in spread]
        keys = [row.double() for c in chosen for row in c.keys]
        numbers = [[own[i] for i in spread] for own in (biases, temperatures)]
        for x, y in calls:
            expected = oracle(x, weights[name], inverse, keys, wanted, *numbers)
            torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=5e-5)


def test_merged_values_are_exact_at_their_own_keys(pipe):
    bean, mug = concepts()
    with apply(pipe, [bean, mug], normalised=True, bias=0.5) as applied:
        for name in Parts(pipe).targets.values:
            edit, layer = applied.edits[name], Parts(pipe).projections[name]
            assert edit.keys.shape[0] == 5
            for concept in (bean, mug):
                with torch.no_grad():
                    found = layer(concept.keys)
                torch.testing.assert_close(found, concept.targets[name], rtol=1e-3, atol=1e-3)


def test_prompts_without_the_word_are_unchanged_to_the_bit(pipe):
    bean, mug = concepts()
    plain = pictures(pipe, ["a photo of a cat", "my blue cup"], [0, 1])
    with apply(pipe, [bean, mug]):
        similar = [
            explain(pipe, prompt, show=False).similarity["values"].abs().max()
            for prompt in ("a photo of a cat", "my blue cup", ",")
        ]
    with apply(pipe, [bean, mug], floor=float(max(similar)) + 1e-3):
        assert np.array_equal(pictures(pipe, ["a photo of a cat", "my blue cup"], [0, 1]), plain)
        assert not np.array_equal(
            pictures(pipe, ["a <bean>", "my blue cup"], [0, 1])[:1], plain[:1]
        )
    assert np.array_equal(pictures(pipe, ["a photo of a cat", "my blue cup"], [0, 1]), plain)


@pytest.mark.parametrize("category", ["cat", "teddy bear", "red blue teddy bear"])
def test_the_global_lock_puts_one_word_in_the_place_of_all_vectors(pipe, category):
    bean, mug = random_concept(pipe, "<bean>", category, vectors=3), concepts()[1]
    prompt = "a <bean> by a <mug> and a <bean> at night"
    plain = prompt.replace("<bean>", category).replace("<mug>", mug.category)
    texts = Parts(pipe).text
    wanted = texts.encode([plain]).embeds[0].detach()
    with apply(pipe, [bean, mug], lock="global") as applied:
        read = applied.key_reads(texts.encode([prompt]).embeds)[0].detach()
    # Token by token: all of a word's are the category's last, and all else is itself.
    k = len(category.split())
    bean_first, mug_at, bean_again = [1 + k] * 3, [5 + k] * 2, [7 + 2 * k] * 3
    own = [0, 1, *bean_first, 2 + k, 3 + k, *mug_at, 6 + k, 7 + k, *bean_again]
    own += [8 + 2 * k, 9 + 2 * k, 10 + 2 * k]
    torch.testing.assert_close(read[: len(own)], wanted[own])


def test_strengths_by_row_are_those_of_all_vectors(pipe):
    bean, mug = concepts()
    prompts, strengths = ["a <bean>", PROMPT, "a cat"], [0.0, 0.6, 1.3]
    with apply(pipe, [bean, mug], bias=0.3) as applied:
        singles = []
        for row, prompt in enumerate(prompts):
            applied.set("<bean>", strength=strengths[row])
            singles.append(pictures(pipe, [prompt], [row]))
        applied.set("<bean>", strength=strengths)
        close(pictures(pipe, prompts, range(3)), np.concatenate(singles))


def test_gates_are_explained_for_each_vector(pipe):
    bean, mug = concepts()
    with apply(pipe, [bean, mug]):
        shown = explain(pipe, PROMPT, show=False)
    assert shown.keys == (*BEAN, "<mug>", "<mug>_1")
    assert shown.opening["values"].shape[1] == 5
    own = [i for i, token in enumerate(shown.tokens) if token in BEAN]
    others = [i for i in range(len(shown.tokens)) if i not in own]
    assert shown.leak("<bean>") == float(shown.opening["values"][others, :3].max())
    assert len(shown.table().columns) == 1 + 2 * 2 * 5
    assert len(shown.plot().axes) == 2


# --------------------------------------------------------------------------------------- files


def test_a_concept_of_several_vectors_survives_its_file(pipe, tmp_path):
    bean, _ = concepts()
    file, again = tmp_path / "bean.safetensors", tmp_path / "again.safetensors"
    bean.save(file, dtype=torch.float32)
    loaded = Concept.load(file)
    assert loaded.vectors == 3
    assert rk.load(file).metadata["perfusion"] == "2"
    torch.testing.assert_close(loaded.key, bean.key)
    torch.testing.assert_close(loaded.image, bean.image)
    assert torch.equal(loaded.embeddings[0], bean.embeddings[0])
    assert all(torch.equal(loaded.targets[n], t) for n, t in bean.targets.items())
    loaded.renamed("<pea>").renamed("<bean>").save(again, dtype=torch.float32)
    assert again.read_bytes() == file.read_bytes()
    with apply(pipe, bean):
        wanted = pictures(pipe, "a <bean>", [0])
    with apply(pipe, loaded.renamed("<pea>")):
        assert np.array_equal(pictures(pipe, "a <pea>", [0]), wanted)


def test_files_of_one_vector_are_those_of_before(pipe, tmp_path):
    file = tmp_path / "one.safetensors"
    random_concept(pipe).save(file)
    texts = rk.load(file).metadata
    assert texts["perfusion"] == "1"
    assert "vectors" not in texts
    assert Concept.load(file).key.ndim == 1


def _changed(file, texts=None, **items):
    loaded = rk.load(file)
    rk.save({**loaded, **items}, file, metadata={**loaded.metadata, **(texts or {})})


@pytest.mark.parametrize(
    ("texts", "items", "message"),
    [
        ({"vectors": "2"}, {}, "has 3 keys for one projection and a word of 2 vectors"),
        ({"vectors": "x"}, {}, "a word of x vectors, but a concept file holds one concept"),
        ({"vectors": ""}, {}, "a word of unknown vectors"),
        ({"perfusion": "1"}, {}, "has 3 keys for one projection and a word of 1 vectors"),
        ({"perfusion": "3"}, {}, "version 2 or version 1: its version is '3'"),
        ({}, {"embedding.0": torch.zeros(2, 32)}, r"must be 3 rows, got \[2, 32\]"),
        ({}, {"embedding.0": torch.zeros(32)}, r"must be 3 rows, got \[32\]"),
    ],
)
def test_files_that_contradict_themselves_are_refused(pipe, tmp_path, texts, items, message):
    file = tmp_path / "bean.safetensors"
    concepts()[0].save(file)
    _changed(file, texts, **items)
    with pytest.raises(PerfusionError, match=message):
        Concept.load(file)


# ------------------------------------------------------------------------------------ learning


@functools.cache
def moment_of(family):
    return second_moment(pipe_of(family), CAPTIONS, progress=False)


def taught(pipe, category="cat", run=None, **settings):
    small = {"steps": 3, "batch": 2, "templates": TEMPLATES, "checkpoint_every": 1}
    family = next(f for f in ("stable_diffusion", "stable_diffusion_xl", "pixart", "sana")
                  if pipe_of(f) is pipe)  # fmt: skip
    return learn(
        pipe, photos(2), placeholder="<bean>", category=category, statistics=moment_of(family),
        config=Config(**(small | settings)), run=run, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "pixart"])
def test_all_vectors_are_learned(family):
    pipe = pipe_of(family)
    plain, tokenizer = pictures(pipe, "a cat", [0]), pipe.tokenizer
    concept = taught(pipe, vectors=3)
    assert pipe.tokenizer is tokenizer
    assert np.array_equal(pictures(pipe, "a cat", [0]), plain)
    start = Learner(
        Parts(pipe), Naming("<bean>", "cat"), metric_of(moment_of(family)),
        Config(vectors=3, templates=TEMPLATES),
    )  # fmt: skip
    assert concept.key.shape == (3, Parts(pipe).targets.width)
    assert set(concept.targets) == set(Parts(pipe).targets.values)
    for name, target in concept.targets.items():
        assert target.shape == start.targets[name].shape
        moved = (target - start.targets[name].detach()).abs().amax(1)
        assert float(moved.min()) > 0  # of each vector
        assert not torch.allclose(target[0], target[1])
    for row, first in zip(concept.embeddings, start.rows, strict=True):
        assert float((row - first.detach()).abs().amax(1).min()) > 0
    with apply(pipe, concept):
        assert not np.array_equal(pictures(pipe, "a <bean>", [0]), plain)


def test_a_training_of_several_vectors_goes_on_where_it_stopped(pipe, tmp_path):
    whole = taught(pipe, vectors=2, contexts=("a cup and a {}",), run=tmp_path / "whole")
    run = tmp_path / "run"
    calls = []
    step = training.Stepper.step

    def stopped(self, number):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Stepper, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            taught(pipe, vectors=2, contexts=("a cup and a {}",), run=run)
    with pytest.raises(PerfusionError, match="vectors was 2, is none"):
        taught(pipe, contexts=("a cup and a {}",), run=run)
    again = taught(pipe, vectors=2, contexts=("a cup and a {}",), run=run)
    for name in ("whole", "run"):
        assert (tmp_path / name / training.CONCEPT).exists()
    files = [(tmp_path / name / training.CONCEPT).read_bytes() for name in ("whole", "run")]
    assert files[0] == files[1]
    assert torch.equal(again.key, whole.key)


def test_several_vectors_begin_as_the_words_tokens_and_then_with_noise(pipe):
    texts, metric = Parts(pipe).text, metric_of(moment_of("stable_diffusion"))
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    teddy, bear = (embedding_of(encoder, tokenizer(w).input_ids[1]) for w in ("teddy", "bear"))

    def rows(seed=0, **settings):
        config = Config(templates=TEMPLATES, seed=seed, **settings)
        learner = Learner(Parts(pipe), Naming("<bean>", "teddy bear"), metric, config)
        return learner.rows[0].detach()

    assert torch.equal(rows(), bear)
    assert torch.equal(rows(vectors=2), torch.stack([teddy, bear]))
    four = rows(vectors=4)
    assert torch.equal(four[:2], torch.stack([teddy, bear]))
    assert torch.equal(four, rows(vectors=4))
    assert not torch.equal(four, rows(seed=1, vectors=4))
    for further in four[2:]:
        assert 0 < float((further - bear).norm()) < 0.5 * float(bear.norm())
    assert not torch.equal(four[2], four[3])
    assert texts.tokenizer is tokenizer


def test_settings_of_several_vectors():
    with pytest.raises(PerfusionError, match="vectors must be at least 1, got 0"):
        Config(vectors=0)
    with pytest.raises(PerfusionError, match="vectors must be 1 with key_gradient, got 2"):
        Config(vectors=2, key_gradient=True)
    with pytest.raises(PerfusionError, match="vectors must be of type int"):
        Config().changed({"vectors": 2.0})
    # Trainings and files of one vector are those of before there were several.
    assert "vectors" not in Config().deciding()
    assert Config(vectors=2).deciding()["vectors"] == "2"
    assert Config(vectors=2).digest() != Config().digest()
    assert "vectors = 1\n" in Config().to_toml()


def test_an_exported_lora_of_several_vectors(pipe, tmp_path):
    bean, _ = concepts()
    error = perfusion.export_lora(pipe, bean, tmp_path / "bean.safetensors", layout="kohya")
    assert 0 < error < 20
    targets = perfusion.find_targets(pipe)
    names = [*targets.keys, *targets.values]
    edits = rk.from_lora(tmp_path / "bean.safetensors", component="unet", modules=names)
    name = targets.values[0]
    layer = targets.modules(pipe.unet)[name]
    flat = next(e for n, e in edits.items() if n.replace(".", "_").endswith(name.replace(".", "_")))
    assert flat.rank == 3
    # At each of its keys the linear edit gives that key's target in full.
    found = bean.keys @ flat.delta().T + layer(bean.keys)
    torch.testing.assert_close(found, bean.targets[name], atol=2e-3, rtol=1e-2)


def test_a_sweep_of_several_vectors(pipe):
    bean = dataclasses.replace(concepts()[0], floor=None)
    points = perfusion.sweep(
        pipe, bean, [], lambda pictures, *_: perfusion.Scores(np.asarray(pictures[0]).mean(), 0.5),
        prompts=("a photo of a {}",), biases=(0.2, 0.9), temperatures=(0.1,),
        sampling=perfusion.Sampling(steps=1, size=16), progress=False,
    )  # fmt: skip
    assert points[0].scores != points[1].scores
