"""Edits where the text enters models in which text and picture attend jointly."""

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from rankedit_recipes import concepts
from rankedit_recipes.concepts.methods.own import named
from rankedit_recipes.concepts.prompts import read_prompts
from rankedit_recipes.concepts.shifting import read_shifts, shown_templates
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.families import joint, tiny
from tests.diffusion.pipelines import CAPTIONS
from tests.problems import relative

# The tiny tokenizers know no word that a template's mark follows without a space.
WITHIN = ["a photo of a {} at night"]
ENTRANCES = {
    "stable_diffusion_3": "context_embedder",
    "flux": "context_embedder",
    "flux_2": "context_embedder",
    "qwen_image": "txt_in",
    "z_image": "cap_embedder.1",
    "lumina_2": "time_caption_embed.caption_embedder.1",
    "cogview4": "patch_embed.text_proj",
    "aura_flow": "context_embedder",
    "prx": "txt_in",
}
SPOKEN = "is told each prompt in a pooled vector too"
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{SPOKEN}"),
    pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin"),
]


def pipeline(name):
    return next(getattr(m, name) for m in (joint, tiny, pipelines) if hasattr(m, name))()


def picture(pipe, prompt="a photo of a cat"):
    """Latents: what the denoiser made, without the autoencoder's part."""
    noise = torch.Generator().manual_seed(0)
    made = pipe(prompt=prompt, height=64, width=64, num_inference_steps=1, output_type="latent",
                generator=noise, **tiny.one_frame(pipe))  # fmt: skip
    return np.asarray(next(iter(made.values())).detach())


def with_t5():
    """Stable Diffusion 3 with its third encoder, whose encodings stand behind those of CLIP."""
    pipe = pipelines.stable_diffusion_3()
    words = pipelines.word_tokenizer(32)
    made = tiny.filled(1, encoder=tiny.t5(len(words), 64))["encoder"]
    pipe.register_modules(text_encoder_3=made, tokenizer_3=words)
    return pipe


@pytest.mark.parametrize("name", ENTRANCES)
def test_at_the_entrance_a_replaced_word_lacks_what_the_formula_says(name):
    """Of what a single key lacks, UCE leaves `λ/(λ + ‖k‖²)`; in the projection as it runs."""
    pipe = pipeline(name)
    request = concepts.replace("cat", "dog", contexts=WITHIN)
    before = picture(pipe, "a photo of a cat at night")
    edited = concepts.edit(pipe, [request], method="uce")
    rows = edited.rows["cat"]
    assert len(rows.keys) == 1
    left = 0.5 / (0.5 + float(rows.keys.square().sum()))
    [(found, layer)] = edited.layers(Parts(pipe, entrance=True)).items()
    assert found == ENTRANCES[name]
    word, goal = (rk.linear_output(layer, x.float()) for x in (rows.keys, rows.guides))
    with edited.attach(pipe):
        after = rk.linear_output(layer, rows.keys.float())
        assert relative(after.double(), (goal + left * (word - goal)).double()) < 1e-4
        changed = picture(pipe, "a photo of a cat at night")
    assert not np.allclose(changed, before, atol=1e-6)
    assert np.array_equal(picture(pipe, "a photo of a cat at night"), before)


@pytest.mark.parametrize("name", ["qwen_image", "cogview4", "z_image"])
def test_what_is_read_is_what_the_entrance_reads_when_a_picture_is_made(name):
    pipe = pipeline(name)
    edited = concepts.edit(pipe, [concepts.erase("cat", contexts=WITHIN)], method="uce")
    seen = []
    layer = dict(pipe.transformer.named_modules())[ENTRANCES[name]]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    picture(pipe, "a photo of a cat at night")
    handle.remove()
    rows = torch.cat([read.reshape(-1, read.shape[-1]) for read in seen]).double()
    for key in edited.rows["cat"].keys:
        assert float((rows - key).norm(dim=1).min()) < 1e-4 * float(key.norm())


def test_every_encoder_has_keys_of_its_own():
    pipe = with_t5()
    requests = [concepts.replace("cat", "teddy bear", contexts=WITHIN),
                concepts.hold("cup", contexts=WITHIN)]  # fmt: skip
    edited = concepts.edit(pipe, requests, method="uce")
    rows = edited.rows["cat"]
    assert rows.block.tolist() == [0, 1]
    assert edited.kept.held.shape == (2, 64)
    # CLIP's rows are filled with zeros from its width on, T5's are not; neither is the other's.
    [cat, bear] = read_prompts(Parts(pipe, entrance=True), [WITHIN[0].format(w) for w in
                               ("cat", "teddy bear")], ["cat", "teddy bear"])  # fmt: skip
    assert cat.ends[1] - cat.spans[1].start == cat.ends[0] - 1 == 4
    assert bear.ends[1] - bear.ends[0] == cat.ends[1] - cat.ends[0]
    assert torch.equal(rows.guides, bear.vectors[list(bear.ends)])
    K, R, H = rows.keys.T, (rows.guides - rows.keys).T, edited.kept.held.T
    expected = R @ K.T @ torch.linalg.inv(0.5 * torch.eye(64).double() + K @ K.T + H @ H.T)
    assert relative(edited.map.delta(), expected) < 1e-9


def test_attributes_of_every_encoder_move_its_own_keys():
    parts = Parts(with_t5(), entrance=True)
    cup = concepts.balance("cup", {"red": 0.5, "blue": 0.5})
    found = read_shifts(parts, cup, named("uce"))
    assert found.block.tolist() == [0, 1]
    [red, blue] = read_prompts(parts, ["red", "blue"], ["red", "blue"])
    for place, attribute in enumerate((red, blue)):
        assert torch.equal(found.directions[place], attribute.vectors[list(attribute.ends)])
    within = read_shifts(parts, cup, named("covariance"))
    assert set(within.block.tolist()) == {0, 1}
    assert int(within.word.sum()) == 2 * len(shown_templates(parts, cup, named("covariance")))
    edited = concepts.edit(
        parts.pipe, [dataclasses.replace(cup, amounts=(1.0, -1.0))], method="uce"
    )  # fmt: skip
    assert relative(edited.rows["cup"].guides, found.rows((1.0, -1.0)).guides) < 1e-12


def test_files_gates_weights_and_loras_of_the_entrance(tmp_path):
    pipe = with_t5()
    edited = concepts.edit(
        pipe, [concepts.erase("cat", to="dog"), concepts.erase("cup", to="bear")],
        statistics=CAPTIONS, progress=False,
    )  # fmt: skip
    edited.save(tmp_path / "edit.safetensors")
    loaded = concepts.Edited.load(tmp_path / "edit.safetensors", statistics=edited.kept.moment)
    assert torch.equal(loaded.rows["cat"].block, edited.rows["cat"].block)
    assert relative(loaded.without("cup").map.delta(), edited.without("cup").map.delta()) < 1e-9
    free = [caption for caption in CAPTIONS if "dog" in caption]
    gated = concepts.gated(pipe, edited, free)
    assert gated.gate.names.count("cat") == 4  # the word and what follows it, of both encoders
    with edited.attach(pipe):
        inside = picture(pipe)
    edited.fuse(pipe)
    assert np.allclose(picture(pipe), inside, atol=1e-4)
    rk.unfuse_(pipe.transformer)
    edited.export_lora(pipe, tmp_path / "lora.safetensors")
    names = dict(pipe.transformer.named_modules())
    lora = rk.from_lora(tmp_path / "lora.safetensors", component="transformer", modules=names)
    assert list(lora) == ["context_embedder"]


def test_what_joint_models_cannot_have_is_refused_with_the_reason():
    requests = [concepts.erase("cat"), concepts.hold("cup")]
    with pytest.raises(concepts.ConceptsError, match="changes value projections alone"):
        concepts.edit(pipelines.stable_diffusion_3(), requests, method="speed")
    pipe = pipelines.stable_diffusion_3()
    with pytest.raises(PipelineError, match="it is not known where words stand"):
        concepts.edit(tiny.kandinsky_5(), requests[:1], method="uce")
    far = "a photo of " + "a dog and " * 9 + "a {}"
    with pytest.raises(concepts.ConceptsError, match="is not among the 24 tokens"):
        concepts.edit(pipe, [concepts.erase("cat", contexts=[far])], method="uce")


def byte_level():
    """A tokenizer as Qwen's: a word behind a space is another token than the same one without."""
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<pad>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    own.train_from_iterator([*CAPTIONS * 3, *(w for c in CAPTIONS for w in c.split())], trainer)
    return tiny.Processor(
        tokenizer_object=own, pad_token="<pad>", eos_token="</s>", model_max_length=64
    )


def test_words_are_found_where_a_space_makes_other_tokens():
    pipe, tokenizer = tiny.z_image(), byte_level()
    encoder = tiny.filled(2, encoder=tiny.decoder("Qwen3", len(tokenizer)))["encoder"]
    pipe.register_modules(tokenizer=tokenizer, text_encoder=encoder)
    assert tokenizer("cat").input_ids != tokenizer(" cat").input_ids
    parts = Parts(pipe, entrance=True)
    prompts = ["cat at night", "a photo of a cat at night", "teddy bear", "the teddy bear"]
    words = ["cat", "cat", "teddy bear", "teddy bear"]
    for prompt, word in zip(read_prompts(parts, prompts, words), words, strict=True):
        tokens = tokenizer(prompt.text).input_ids
        [(first, last)] = prompt.spans[0].places
        assert tokenizer.decode(tokens[first : last + 1]).lstrip("Ġ").replace("Ġ", "") == word
    edited = concepts.edit(pipe, [concepts.replace("cat", "teddy bear")], method="time")
    assert edited.rows["cat"].word.any()


def test_encoders_side_by_side_that_cut_a_prompt_differently_are_refused():
    pipe = pipelines.stable_diffusion_3()
    second = copy.deepcopy(pipe.tokenizer_2)
    second.add_tokens(["photo of"])
    pipe.text_encoder_2.resize_token_embeddings(len(second))
    pipe.register_modules(tokenizer_2=second)
    with pytest.raises(concepts.ConceptsError, match="at different places of 'a photo of a cat"):
        concepts.edit(pipe, [concepts.erase("cat", contexts=WITHIN)], method="uce")


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux", "stable_diffusion_xl", "cogview4"])
def test_a_pooled_vector_beside_the_tokens_is_warned_of(name):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        concepts.edit(pipeline(name), [concepts.erase("cat", contexts=WITHIN)], method="uce")
    pooled = [w for w in said if SPOKEN in str(w.message)]
    assert len(pooled) == (name != "cogview4")
