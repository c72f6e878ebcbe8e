"""Concepts in pipelines as people use them: rewritten prompts, shared parts, other adapters."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image
from diffusers.hooks import HookRegistry
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.vectors import in_place_of
from rankedit_recipes.perfusion.applying.applied import in_use
from rankedit_recipes.perfusion.applying.apply import apply, load
from rankedit_recipes.perfusion.applying.explaining import explain
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.training import CHECKPOINT, learn

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import TEMPLATES, random_concept
from tests.perfusion.test_learning import photos

WIDTH = 32


@pytest.fixture
def pipe():
    made = pipelines.stable_diffusion()
    made.set_progress_bar_config(disable=True)
    made.tokenizer = copy.deepcopy(made.tokenizer)  # all tests share one; these add words
    return made


def picture(pipe, prompt, **more):
    given = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"} | more
    return pipe(prompt, generator=torch.Generator().manual_seed(1), **given).images


def vectors(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(count, WIDTH, generator=generator)


def inverted(pipe, word, count, seed=0):
    """A textual inversion, as people have them beside concepts."""
    pipe.load_textual_inversion({word: vectors(count, seed)})


# ---------------------------------------------------------------------- prompts that are rewritten


def test_words_are_found_where_they_are_tokenised(pipe):
    inverted(pipe, "<sunny>", 3)
    prompt = "a <sunny> photo of a <bean>"
    texts = Parts(pipe).text
    with apply(pipe, random_concept(pipe)):
        # <s> a SUNNY SUNNY_1 SUNNY_2 photo of a BEAN
        assert texts.positions(texts.encode([prompt]), "<bean>") == [[8]]
        shown = explain(pipe, prompt, show=False)
        assert shown.tokens[8] == "<bean>"
        assert shown.tokens[2:5] == ["<sunny>", "<sunny>_1", "<sunny>_2"]
        assert texts.token_mask(texts.encode([prompt]), "content")[0].nonzero().flatten().tolist() \
            == list(range(1, 9))  # fmt: skip


def test_the_global_lock_follows_rewritten_prompts(pipe):
    inverted(pipe, "<sunny>", 2)
    with apply(pipe, random_concept(pipe), lock="global"):
        read = Parts(pipe).text.encode(["a <sunny> <bean> and a dog"]).embeds
        locked = explain(pipe, "a <sunny> <bean> and a dog", show=False).similarity["keys"]
        keys = in_use[pipe].key_reads(read)
    category = Parts(pipe).text.encode(["a <sunny> cat and a dog"]).embeds
    torch.testing.assert_close(keys, category)
    assert float(locked[:, 0].detach().max()) < 1


def test_learning_finds_its_word_behind_one_of_several_vectors(pipe):
    inverted(pipe, "<sunny>", 3)
    config = Config(steps=1, batch=2, templates=("a <sunny> photo of a {}",), checkpoint_every=1)
    concept = learn(
        pipe, photos(1), placeholder="<bean>", category="cat", statistics=CAPTIONS, config=config,
        progress=False,
    )  # fmt: skip
    texts = Parts(pipe).text
    with torch.no_grad():
        encoded = texts.encode(["a <sunny> photo of a cat"])
    start = encoded.embeds[0, texts.positions(encoded, "cat")[0][0]]
    # One step of the average: the key is where it began, at the category behind all vectors.
    assert float((concept.key - start).norm()) < 0.05 * float(start.norm())


@pytest.mark.parametrize(
    ("prompt", "changed"),
    [
        ("a photo of a mushroom", "a photo of a mushroom"),
        ("mush, mush!", "cat, cat!"),
        ("mush_room mush1 amush", "mush_room mush1 amush"),
    ],
)
def test_a_word_is_not_a_part_of_another(prompt, changed):
    assert in_place_of({"mush": "cat"}, prompt) == changed


def test_brackets_may_touch_other_letters():
    assert in_place_of({"<bean>": "cat"}, "two<bean>s") == "twocats"


def test_the_global_lock_leaves_prompts_without_the_word_alone(pipe):
    before = picture(pipe, "a photo of a mushroom")
    with apply(pipe, random_concept(pipe, trigger="mush"), lock="global", strength=0.0):
        assert np.array_equal(picture(pipe, "a photo of a mushroom"), before)


# ------------------------------------------------------------------------------ arguments of calls


@pytest.mark.parametrize("prompt", ["a photo of a <bean>", ["a <bean>", "a dog"]])
@pytest.mark.parametrize("kind", [str, list])
def test_negative_prompts_of_any_type_under_the_global_lock(pipe, prompt, kind):
    count = 1 if isinstance(prompt, str) else len(prompt)
    negative = "blue" if kind is str or count == 1 else ["blue"] * count
    if isinstance(prompt, list) and isinstance(negative, str):
        pytest.skip("diffusers itself refuses a text beside a list")
    with apply(pipe, random_concept(pipe), lock="global"), warnings.catch_warnings():
        warnings.simplefilter("error", rk.RankeditWarning)
        assert picture(pipe, prompt, negative_prompt=negative).shape[0] == count


def test_further_prompts_of_xl_keep_their_type():
    pipe = pipelines.stable_diffusion_xl()
    pipe.set_progress_bar_config(disable=True)
    with apply(pipe, random_concept(pipe), lock="global"):
        made = picture(pipe, "a <bean>", prompt_2="a <bean> on grass", negative_prompt="blue")
    assert made.shape[0] == 1
    assert np.isfinite(made).all()


def test_embeddings_that_were_changed_on_the_way_are_told_of(pipe):
    concept = random_concept(pipe)
    with apply(pipe, concept, lock="global"):
        texts = Parts(pipe).text
        encoded = texts.encode(["a photo of a <bean>"])
        place = texts.positions(encoded, "<bean>")[0][0]
        changed = encoded.embeds.clone()
        changed[0, place] = 1.2 * concept.key
        with pytest.warns(rk.RankeditWarning, match=r"global lock.*<bean>.*lock='local'"):
            picture(pipe, None, prompt_embeds=changed, guidance_scale=1.0)
        with warnings.catch_warnings():  # once is enough
            warnings.simplefilter("error", rk.RankeditWarning)
            picture(pipe, None, prompt_embeds=changed, guidance_scale=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
@pytest.mark.parametrize("name", ["strength", "bias", "temperature"])
def test_numbers_that_are_none_are_refused_wherever_they_come_in(pipe, name, value):
    bean, mug = random_concept(pipe), random_concept(pipe, "<mug>", "cup", 1)
    with pytest.raises(PerfusionError, match=f"{name} of '<bean>' must be"):
        apply(pipe, bean, **{name: value})
    assert pipe not in in_use
    with apply(pipe, bean) as applied:
        with pytest.raises(PerfusionError, match=f"{name} of '<mug>' must be"):
            load(pipe, mug, **{name: value})
        with pytest.raises(PerfusionError, match=f"{name} of '<bean>' must be"):
            applied.set(**{name: value})
        assert applied.triggers == ("<bean>",)


def test_a_temperature_that_is_zero_in_single_precision_is_refused(pipe):
    with pytest.raises(PerfusionError, match="temperature of '<bean>' must be positive"):
        apply(pipe, random_concept(pipe), temperature=1e-50)


# -------------------------------------------------------------------------------------- the words


@pytest.mark.parametrize("words", [("<bean>", "<bean>_1"), ("<bean>_2", "<bean>"), ("zz", "zz_7")])
def test_words_that_look_like_further_vectors_are_refused(pipe, words):
    concepts = [
        random_concept(pipe, word, kind, seed)
        for seed, (word, kind) in enumerate(zip(words, ("cat", "cup"), strict=True))
    ]
    tokenizer = pipe.tokenizer
    with pytest.raises(PipelineError, match="cannot both be words") as refused:
        apply(pipe, concepts)
    assert str(refused.value).rpartition("such as '")[2].removesuffix("'.") not in words
    assert pipe.tokenizer is tokenizer


def test_words_beside_textual_inversions(pipe):
    inverted(pipe, "<sunny>", 1)
    with pytest.raises(PipelineError, match="cannot both be words"):
        apply(pipe, random_concept(pipe, "<sunny>_1"))
    with apply(pipe, random_concept(pipe, "<sunny_1>")):
        assert pipe.maybe_convert_prompt("a <sunny_1>", pipe.tokenizer) == "a <sunny_1>"


def test_no_words_are_added_while_concepts_are_in(pipe):
    size, rows = len(pipe.tokenizer), pipe.text_encoder.get_input_embeddings().num_embeddings
    with apply(pipe, random_concept(pipe)):
        for add in (
            lambda: inverted(pipe, "<sunny>", 1),
            lambda: pipe.tokenizer.add_tokens(["<other>"]),
        ):
            with pytest.raises(PipelineError, match=r"no words can be added while <bean>"):
                add()
    assert len(pipe.tokenizer) == size
    assert pipe.text_encoder.get_input_embeddings().num_embeddings == rows
    inverted(pipe, "<sunny>", 1)
    assert len(pipe.tokenizer) == size + 1


def test_a_tokenizer_that_was_exchanged_meanwhile_stays(pipe):
    other = copy.deepcopy(pipe.tokenizer)
    with apply(pipe, random_concept(pipe)):
        pipe.tokenizer = other
    assert pipe.tokenizer is other


def test_a_pipeline_with_concepts_is_saved_without_them(pipe, tmp_path):
    before = picture(pipe, "a photo of a cat")
    with apply(pipe, random_concept(pipe), lock="global"):
        pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert len(again.tokenizer) == len(pipe.tokenizer)
    assert np.array_equal(picture(again, "a photo of a cat"), before)
    assert picture(again, "a photo of a <bean>").shape == before.shape


# ------------------------------------------------------------------------- shared parts, adapters


def test_a_second_pipeline_of_the_same_parts_is_refused_without_a_trace(pipe):
    other = AutoPipelineForImage2Image.from_pipe(pipe)
    tokenizer = other.tokenizer
    with apply(pipe, random_concept(pipe)):
        with pytest.raises(PerfusionError, match=r"shares its UNet2DConditionModel.*<bean>"):
            apply(other, random_concept(pipe, "<mug>", "cup", 1))
        with pytest.raises(PerfusionError, match="shares its UNet2DConditionModel"):
            learn(other, photos(1), placeholder="<x>", category="cat", statistics=CAPTIONS)
    assert other.tokenizer is tokenizer
    apply(other, random_concept(pipe, "<mug>", "cup", 1)).detach()


def test_a_shared_text_encoder_alone_is_refused_without_a_trace(pipe):
    parts = dict(pipe.components)
    parts["unet"] = pipelines.stable_diffusion(seed=1).unet
    other = type(pipe)(**parts, requires_safety_checker=False)
    before = picture(pipe, "a photo of a cat")
    with apply(pipe, random_concept(pipe)):
        with pytest.raises(PipelineError, match="has new words already"):
            apply(other, random_concept(other, "<mug>", "cup", 1))
        assert other not in in_use
    assert np.array_equal(picture(pipe, "a photo of a cat"), before)


def adapted(pipe, kind):
    """Loads an IP-Adapter of random weights, of one vector for a picture or of patches."""
    keys = {
        name.removesuffix(".processor"): processor
        for name, processor in pipe.unet.attn_processors.items()
        if name.endswith("attn2.processor")
    }
    weights = {}
    for index, name in enumerate(keys):
        out = pipe.unet.get_submodule(name).to_k.out_features
        for kv in ("to_k_ip", "to_v_ip"):
            weights[f"{2 * index + 1}.{kv}.weight"] = 0.1 * torch.randn(out, WIDTH)
    image = {
        "vector": {
            "proj.weight": torch.randn(4 * WIDTH, 16),
            "proj.bias": torch.zeros(4 * WIDTH),
            "norm.weight": torch.ones(WIDTH),
            "norm.bias": torch.zeros(WIDTH),
        },
        "patches": {
            "proj.0.weight": torch.randn(16, 16),
            "proj.0.bias": torch.zeros(16),
            "proj.2.weight": torch.randn(WIDTH, 16),
            "proj.2.bias": torch.zeros(WIDTH),
            "proj.3.weight": torch.ones(WIDTH),
            "proj.3.bias": torch.zeros(WIDTH),
        },
    }[kind]
    pipe.unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": weights}])


@pytest.mark.parametrize("kind", ["vector", "patches"])
def test_concepts_and_pictures_in_either_order(kind):
    first, second = pipelines.stable_diffusion(), pipelines.stable_diffusion()
    torch.manual_seed(0)
    adapted(first, kind)
    assert Parts(first).targets == Parts(second).targets
    assert any(
        isinstance(p, IPAdapterAttnProcessor2_0) for p in first.unet.attn_processors.values()
    )
    with apply(first, random_concept(first)) as applied:
        assert applied.triggers == ("<bean>",)
    with pytest.raises(PerfusionError, match=r"learn: an IP-Adapter is loaded.*unload_ip_adapter"):
        learn(first, photos(1), placeholder="<x>", category="cat", statistics=CAPTIONS)


def test_caches_are_emptied_whenever_an_edit_changes(pipe, monkeypatch):
    calls, concept = [], random_concept(pipe)
    HookRegistry.check_if_exists_or_initialize(pipe.unet)
    monkeypatch.setattr(
        type(pipe.unet), "_reset_stateful_cache", lambda self: calls.append(1), raising=False
    )
    applied = apply(pipe, concept)
    assert len(calls) == 1
    applied.set(strength=0.5)
    assert len(calls) == 2
    applied.detach()
    assert len(calls) == 3
    applied.detach()
    assert len(calls) == 3


# ------------------------------------------------------------------------------------- checkpoints


def _rewritten(file, change):
    loaded = rk.load(file)
    items, texts = dict(loaded), dict(loaded.metadata)
    change(items, texts)
    rk.save(items, file, metadata=texts)


def _drop(items, _):
    del items["now.learned.0"]


def _short(items, _):
    items["now.learned.0"] = items["now.learned.0"][:-1]


def _extra(items, _):
    items["now.learned.99"] = torch.zeros(3)


def _unknown(items, _):
    items["other"] = torch.zeros(3)


@pytest.mark.parametrize(
    "change",
    [
        *(lambda _, texts, s=step: texts.update(step=s) for step in ("-5", "0", "3", "99", "x")),
        lambda _, texts: texts.pop("step"),
        lambda _, texts: texts.update(best_step="1"),
        lambda _, texts: texts.update(validations="[[1, 2]]"),
        lambda _, texts: texts.update(validations="7"),
        *(_drop, _short, _extra, _unknown),
    ],
)
def test_checkpoints_with_impossible_contents_are_one_clear_error(pipe, tmp_path, change):
    config = Config(steps=2, batch=2, templates=TEMPLATES, checkpoint_every=1)
    given = {"placeholder": "<bean>", "category": "cat", "config": config, "progress": False}
    learn(pipe, photos(1), statistics=CAPTIONS, run=tmp_path, **given)
    _rewritten(tmp_path / CHECKPOINT, change)
    with pytest.raises(PerfusionError, match="holds what no training writes"):
        learn(pipe, photos(1), statistics=CAPTIONS, run=tmp_path, **given)
