"""Concepts for joint attention: the stream is locked, and what is learned follows word and time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes import perfusion
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.standing import standing
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.joint import learning
from rankedit_recipes.perfusion.joint.concept import JointConcept
from rankedit_recipes.perfusion.joint.config import JointConfig
from rankedit_recipes.perfusion.joint.learning import learn_joint

import rankedit as rk
from rankedit.files.storage import load
from tests.diffusion import pipelines
from tests.diffusion.families import joint, tiny
from tests.patching_cases import state_of

SMALL = {
    "steps": 40,
    "batch": 4,
    "size": 16,
    "templates": ("a photo of a {}", "a picture of my {}"),
}
PROMPT, BASE = "a photo of a <bean> on the grass", "a photo of a cat on the grass"
KNOTS = 3
# Pictures in 0 to 1 that differ by less are the same but for the order of sums.
ROUNDING, SEEN = 2e-5, 2e-3


def apart(one, other):
    return float(np.abs(one - other).max())


def photos():
    rng = np.random.default_rng(0)
    pictures = np.zeros((3, 16, 16, 3), np.uint8)
    pictures[:, 4:12, 4:12] = rng.integers(100, 255, (3, 1, 1, 3))
    return [Image.fromarray(picture) for picture in pictures]


def flux():
    pipe = tiny.flux()
    pipe.vae.register_to_config(shift_factor=0.0)  # as every checkpoint of Flux has one
    return pipe


MAKE = {"stable_diffusion_3": pipelines.stable_diffusion_3, "flux": flux, "cogview4": tiny.cogview4}


@pytest.fixture(scope="module", params=MAKE)
def pipe(request):
    return MAKE[request.param]()


@pytest.fixture(scope="module")
def sd3():
    return pipelines.stable_diffusion_3()


def draw(pipe, prompt, seed=0, **more):
    made = pipe(
        prompt, height=16, width=16, num_inference_steps=3, output_type="np",
        generator=torch.Generator().manual_seed(seed), **more,
    )  # fmt: skip
    return np.asarray(made.images)


def random_concept(pipe, trigger="<bean>", category="cat", seed=0, knots=KNOTS):
    """Values and keys as large as what the projections give."""
    generator = torch.Generator().manual_seed(seed)
    modules = dict(Parts(pipe).denoiser.plain.named_modules())

    def drawn(name):
        width = rk.Projection(modules[name]).out_features
        return 8 * torch.randn(knots, width, generator=generator)

    readers = Parts(pipe).readers
    keys, values = (
        {r: drawn(r) for r in part}
        for part in zip(*((r.key, r.value) for r in readers), strict=True)
    )
    return JointConcept(trigger, category, values, keys)


def same(one, other):
    tables = [(c.values, c.keys) for c in (one, other)]
    return all(
        a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
        for a, b in zip(*tables, strict=True)
    )


# ------------------------------------------------------------------------------ pictures


def test_nothing_changes_off_the_concept_and_all_is_gone_afterwards(pipe):
    base, other = draw(pipe, BASE), draw(pipe, "a photo of a dog")
    before = state_of(pipe.transformer), set(vars(pipe)), pipe.encode_prompt.__func__
    with perfusion.apply_joint(pipe, random_concept(pipe)) as applied:
        assert np.array_equal(draw(pipe, "a photo of a dog"), other)
        assert np.array_equal(draw(pipe, BASE), base)
        concept = draw(pipe, PROMPT)
        assert apart(concept, base) > SEEN
        applied.set(strength=0.0)
        assert np.array_equal(draw(pipe, PROMPT), base)  # the stream is the category's
        applied.set(strength=1.0, keys=0.0)
        assert apart(draw(pipe, PROMPT), concept) > SEEN
        applied.set("<bean>", keys=0.5)
        assert np.array_equal(draw(pipe, PROMPT), concept)
    applied.detach()
    assert np.array_equal(draw(pipe, BASE), base)
    assert (state_of(pipe.transformer), set(vars(pipe)), pipe.encode_prompt.__func__) == before


def by_hand(pipe, concept, strength, keys):
    """Hooks of torch's own that add what the formula says where the category stands."""
    parts, modules = Parts(pipe), dict(pipe.transformer.named_modules())
    times, handles = [], []

    def note(_, args, kwargs):
        # Both families are told the level of noise: in thousandths, or as it is.
        told = float(kwargs["timestep"][0])
        times.append(
            told / 1000 if type(pipe.transformer).__name__ != "FluxTransformer2DModel" else told
        )

    handles.append(pipe.transformer.register_forward_pre_hook(note, with_kwargs=True))
    with parts.text.heard() as heard, torch.no_grad():
        encoded = parts.text.encode([BASE])
    places = standing(parts.text, heard, encoded.embeds, "cat")[0]

    # CogView4 runs the unguided prompt in a call of its own, behind the guided one.
    apart = type(pipe.transformer).__name__ == "CogView4Transformer2DModel"

    def adding(table, factor):
        def add(_, __, output):
            if apart and len(times) % 2 == 0:
                return output
            at = min(max(times[-1], 0.0), 1.0) * (KNOTS - 1)
            low = min(int(at), KNOTS - 2)
            step = table[low] + (at - low) * (table[low + 1] - table[low])
            output[-1, places] += factor * step  # in one call guided prompts come last
            return output

        return add

    for table, factor in ((concept.values, strength), (concept.keys, strength * keys)):
        for name, tensor in table.items():
            handles.append(modules[name].register_forward_hook(adding(tensor, factor)))
    return handles


def test_pictures_are_those_of_the_formula(pipe):
    concept = random_concept(pipe)
    handles = by_hand(pipe, concept, 0.7, 0.3)
    expected = draw(pipe, BASE)
    for handle in handles:
        handle.remove()
    with perfusion.apply_joint(pipe, concept, strength=0.7, keys=0.3):
        assert apart(draw(pipe, PROMPT), expected) < ROUNDING
    assert apart(draw(pipe, BASE), expected) > SEEN


def test_batches_and_several_pictures(pipe):
    alone = draw(pipe, BASE)
    with perfusion.apply_joint(pipe, random_concept(pipe)):
        concept, dog = draw(pipe, PROMPT), draw(pipe, "a dog", 0)
        both = draw(pipe, ["a dog", PROMPT], 0)
        noise = [torch.Generator().manual_seed(0) for _ in range(2)]
        made = pipe(
            [BASE, PROMPT], height=16, width=16, num_inference_steps=3, output_type="np",
            generator=noise,
        ).images  # fmt: skip
        assert apart(made[0], alone[0]) < ROUNDING
        assert apart(made[1], concept[0]) < ROUNDING
        assert apart(both[0], dog[0]) < ROUNDING
        several = draw(pipe, PROMPT, num_images_per_prompt=2)
        assert apart(several[0], concept[0]) < ROUNDING


def test_negative_prompts_are_locked_and_have_nothing_of_a_concept(sd3):
    base = draw(sd3, "a dog", negative_prompt="a cat")
    with perfusion.apply_joint(sd3, random_concept(sd3)):
        assert apart(draw(sd3, "a dog", negative_prompt="a <bean>"), base) < ROUNDING


def test_merged_concepts_are_each_what_they_are_alone(sd3):
    bean, mug = random_concept(sd3), random_concept(sd3, "<mug>", "cup", seed=1)
    with perfusion.apply_joint(sd3, bean):
        alone = draw(sd3, PROMPT)
    with perfusion.apply_joint(sd3, [bean, mug]) as applied:
        assert apart(draw(sd3, PROMPT), alone) < ROUNDING
        two = draw(sd3, "a <bean> and a <mug>")
        applied.set("<mug>", strength=0.0)
        one = draw(sd3, "a <bean> and a <mug>")
        assert apart(two, one) > SEEN
        assert apart(draw(sd3, "a <bean> and a cup"), one) < ROUNDING
    with pytest.raises(PerfusionError, match="words of their own"):
        perfusion.apply_joint(sd3, [bean, bean])
    with pytest.raises(PerfusionError, match="as many knots"):
        perfusion.apply_joint(sd3, [bean, random_concept(sd3, "<mug>", "cup", knots=2)])


def test_compiled_denoisers(sd3):
    with perfusion.apply_joint(sd3, random_concept(sd3)):
        expected = draw(sd3, PROMPT)
    plain = sd3.transformer
    try:
        sd3.transformer = torch.compile(plain, backend="eager")
        with perfusion.apply_joint(sd3, random_concept(sd3)):
            assert apart(draw(sd3, PROMPT), expected) < ROUNDING
    finally:
        sd3.transformer = plain
        torch._dynamo.reset()


NAMES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")


def encoded(pipe, prompt):
    given = pipe.encode_prompt(prompt, None, None)
    return dict(zip((*NAMES, "negative_pooled_prompt_embeds"), given, strict=True))


def test_embeddings_that_the_pipeline_gave_are_known(sd3):
    with perfusion.apply_joint(sd3, random_concept(sd3)):
        concept, given = draw(sd3, PROMPT), encoded(sd3, PROMPT)
        for _ in range(2):
            assert apart(draw(sd3, None, **given), concept) < ROUNDING


def test_prompts_whose_encoding_is_not_known_are_told_of(sd3):
    applied = perfusion.apply_joint(sd3, random_concept(sd3))
    given = encoded(sd3, PROMPT)
    given["prompt_embeds"] = 1.1 * given["prompt_embeds"]
    with pytest.warns(rk.RankeditWarning, match="not given by this pipeline's encode_prompt"):
        draw(sd3, None, **given)
    applied.detach()


# ------------------------------------------------------------------------------ learning, files


def test_learning_lowers_the_loss_and_goes_on_where_it_stopped(pipe, tmp_path):
    before = copy.deepcopy(pipe.transformer.state_dict())
    task = {"placeholder": "<bean>", "category": "cat", "progress": False}
    whole = learn_joint(pipe, photos(), **task, config=JointConfig(**SMALL), run=tmp_path / "one")
    losses = load(tmp_path / "one" / "checkpoint.safetensors")["losses"].tolist()[1:]
    assert len(losses) == SMALL["steps"]
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:8])
    after = pipe.transformer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert set(whole.values) == {r.value for r in Parts(pipe).readers}
    assert set(whole.keys) == {r.key for r in Parts(pipe).readers}

    def stop(self, *, now, kept=learning._Training._keep):
        kept(self, now=now)
        if self._progress.step == 25:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning._Training, "_keep", stop)
        with pytest.raises(KeyboardInterrupt):
            learn_joint(pipe, photos(), **task, config=JointConfig(**SMALL), run=tmp_path / "two")
    again = learn_joint(pipe, photos(), **task, config=JointConfig(**SMALL), run=tmp_path / "two")
    assert same(whole, again)
    with pytest.raises(PerfusionError, match=r"of another training: rate was 0\.3"):
        learn_joint(
            pipe, photos(), **task, config=JointConfig(**SMALL, rate=0.2), run=tmp_path / "two"
        )


def test_values_alone_and_one_knot(sd3):
    config = JointConfig(**{**SMALL, "steps": 2}, knots=1, keys=False)
    learned = learn_joint(
        sd3, photos(), placeholder="<bean>", category="cat", config=config, progress=False
    )
    assert not learned.keys
    assert learned.knots == 1
    base = draw(sd3, BASE)
    with perfusion.apply_joint(sd3, learned):
        assert not np.array_equal(draw(sd3, PROMPT), base)


def test_a_file_has_it_all(sd3, tmp_path):
    concept = random_concept(sd3)
    concept.save(tmp_path / "bean.safetensors", dtype=torch.float32)
    read = JointConcept.load(tmp_path / "bean.safetensors")
    assert same(read, concept)
    assert (read.trigger, read.category, read.base) == ("<bean>", "cat", "")
    with perfusion.apply_joint(sd3, tmp_path / "bean.safetensors"):
        from_file = draw(sd3, PROMPT)
    with perfusion.apply_joint(sd3, concept):
        assert np.array_equal(draw(sd3, PROMPT), from_file)
    rk.save({"values.a": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(PerfusionError, match="no concept file for joint attention"):
        JointConcept.load(tmp_path / "other.safetensors")
    texts = {"perfusion.joint": "1", "trigger": "<bean>", "category": "cat"}
    for items, match in (
        ({"values.a": torch.ones(3)}, "neither values nor keys"),
        ({"strange": torch.ones(3, 2)}, "neither values nor keys"),
        ({"keys.a": torch.ones(3, 2)}, "must hold values"),
        ({"values.a": torch.ones(3, 2), "values.b": torch.ones(2, 2)}, "all with as many knots"),
    ):
        rk.save(items, tmp_path / "other.safetensors", metadata=texts)
        with pytest.raises(PerfusionError, match=match):
            JointConcept.load(tmp_path / "other.safetensors")


# ------------------------------------------------------------------------------ refusals


def test_refusals(sd3):
    concept = random_concept(sd3)
    task = {"placeholder": "<bean>", "category": "cat"}
    with perfusion.apply_joint(sd3, concept) as applied:
        with pytest.raises(PerfusionError, match="are already in this denoiser"):
            perfusion.apply_joint(sd3, concept.renamed("<other>"))
        with pytest.raises(PerfusionError, match="are already in this denoiser"):
            learn_joint(sd3, photos(), **task)
        with pytest.raises(PerfusionError, match=r"words of \[.<bean>.\] and finite"):
            applied.set("<other>", strength=1.0)
        with pytest.raises(PerfusionError, match="finite numbers"):
            applied.set(keys=float("nan"))
    strange = JointConcept("<bean>", "cat", {"blocks.7.to_v": torch.ones(1, 4)})
    with pytest.raises(PerfusionError, match="learned on another kind of model"):
        perfusion.apply_joint(sd3, strange)
    for wrong in ({"steps": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"knots": 0}):
        with pytest.raises(PerfusionError, match="JointConfig"):
            JointConfig(**wrong)
    other = pipelines.stable_diffusion_3(seed=1)
    with pytest.warns(rk.RankeditWarning, match="were learned on other weights"):
        applied = perfusion.apply_joint(sd3, _on(other))
    applied.detach()


def _on(pipe):
    config = JointConfig(**{**SMALL, "steps": 1})
    return learn_joint(
        pipe, photos(), placeholder="<bean>", category="cat", config=config, progress=False
    )


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (joint.aura_flow, PerfusionError, r"tokens of the prompt begin in rows \[8\] of 264"),
        (tiny.z_image, PerfusionError, "expected from the first row on, once"),
    ],
)
def test_families_whose_rows_begin_elsewhere_are_refused(make, error, match):
    with pytest.raises((error, PipelineError), match=match):
        learn_joint(make(), photos(), placeholder="<bean>", category="cat")
