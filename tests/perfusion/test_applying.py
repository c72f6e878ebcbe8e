"""Concepts in a pipeline against a float64 oracle, and out of it without a trace."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts, find_targets
from rankedit_recipes.diffusion.statistics import RIDGE, second_moment
from rankedit_recipes.perfusion import prompts as prompts_module
from rankedit_recipes.perfusion.applying.apply import apply, load, set_concepts, unload
from rankedit_recipes.perfusion.applying.base import base_of, sketch_of
from rankedit_recipes.perfusion.applying.weighting import Weighted
from rankedit_recipes.perfusion.errors import PerfusionError

import rankedit as rk
from rankedit.testing import check_edit
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import random_concept

PROMPT = "a photo of a <bean> next to a <mug>"


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def bean(pipe):
    return random_concept(pipe)


@pytest.fixture(scope="module")
def mug(pipe):
    return random_concept(pipe, "<mug>", "teddy bear", seed=1)


def picture(pipe, prompt="a photo of a cat", **arguments):
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, generator=generator, **(settings | arguments)).images


def recorded(pipe, prompt):
    """Inputs and outputs of every key and value projection in one run of the pipeline."""
    seen: dict[str, list] = {}
    modules = Parts(pipe).projections
    handles = [
        module.register_forward_hook(
            lambda _, args, output, name=name: seen.setdefault(name, []).append((args[0], output))
        )
        for name, module in modules.items()
    ]
    picture(pipe, prompt)
    for handle in handles:
        handle.remove()
    return seen


def oracle(x, weight, inverse, keys, targets, biases, temperatures):
    """Equation 3, and 4 for several concepts, gates on joint coordinates, in float64."""
    x = x.double()
    lower = torch.linalg.cholesky(inverse)
    basis, _ = torch.linalg.qr(torch.stack([lower.T @ k for k in keys], dim=1))
    directions = torch.linalg.solve(lower.T, basis)  # u = L^-T ũ
    rest = x - (x @ inverse @ directions) @ directions.T
    output = rest @ weight.double().T
    stacked = torch.stack(list(keys))
    gram = stacked @ inverse @ stacked.T
    coordinates = torch.linalg.solve(gram, x @ inverse @ stacked.T, left=False)
    for j in range(len(keys)):
        gate = torch.sigmoid((coordinates[..., j] - biases[j]) / temperatures[j])
        output = output + gate[..., None] * targets[j].double()
    return output


def inverse_of(pipe):
    matrix = second_moment(pipe, CAPTIONS, progress=False).matrix
    ridge = RIDGE * matrix.trace() / len(matrix)
    return torch.linalg.inv(matrix + ridge * torch.eye(len(matrix), dtype=torch.float64))


@pytest.mark.parametrize("which", [("<bean>",), ("<bean>", "<mug>")])
def test_every_projection_gives_what_the_equations_say(pipe, bean, mug, which):
    chosen = [c for c in (bean, mug) if c.trigger in which]
    biases, temperatures = [0.6, 0.8][: len(chosen)], [0.15, 0.1][: len(chosen)]
    targets = Parts(pipe).targets
    modules = targets.modules(Parts(pipe).denoiser.module)
    weights = {name: module.weight.detach().clone() for name, module in modules.items()}
    categories = [
        prompts_module.origin_encoding(Parts(pipe), c.naming, c.templates) for c in chosen
    ]
    inverse = inverse_of(pipe)
    with apply(pipe, chosen, bias=biases, temperature=temperatures):
        seen = recorded(pipe, PROMPT)
    assert set(seen) == {*targets.keys, *targets.values}
    for name, calls in seen.items():
        if name in targets.keys:
            wanted = [category @ weights[name].T for category in categories]
        else:
            wanted = [c.targets[name] for c in chosen]
        for x, y in calls:
            keys = [c.key.double() for c in chosen]
            expected = oracle(x, weights[name], inverse, keys, wanted, biases, temperatures)
            torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=2e-5)


def test_pictures_and_weights_afterwards_are_those_of_before(pipe, bean, mug):
    tokenizer, before = pipe.tokenizer, picture(pipe)
    state = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    with apply(pipe, [bean, mug]):
        assert not np.array_equal(picture(pipe), before)
        assert list(pipe.unet.state_dict()) == list(state)
    assert np.array_equal(picture(pipe), before)
    assert pipe.tokenizer is tokenizer
    assert all(torch.equal(v, state[k]) for k, v in pipe.unet.state_dict().items())


def test_strength_zero_of_one_concept_leaves_the_other_alone(pipe, bean):
    # Orthogonal keys: the joint projection is then the sum of the single ones.
    targets = Parts(pipe).targets
    name = targets.values[0]
    with apply(pipe, [bean, random_concept(pipe, "<mug>", "cup", seed=5)]) as applied:
        applied.set("<mug>", strength=0.0)
        applied.set("<bean>", strength=0.0)
        off = picture(pipe, "a photo of a cat")
        applied.set("<bean>", strength=1.0)
        assert not np.array_equal(off, picture(pipe, "a photo of a cat"))
    assert name in applied.edits or not applied.edits
    np.testing.assert_allclose(off, picture(pipe, "a photo of a cat"), atol=1e-6)


def test_settings_change_at_run_time_as_if_they_had_been_given_at_once(pipe, bean, mug):
    with apply(pipe, [bean, mug], bias=[0.4, 0.6], temperature=0.2, strength={"<mug>": 0.5}):
        wanted = picture(pipe, PROMPT)
    with apply(pipe, [bean, mug]) as applied:
        applied.set("<bean>", bias=0.4)
        set_concepts(pipe, "<mug>", bias=0.6, strength=0.5)
        set_concepts(pipe, temperature=0.2)
        assert np.array_equal(picture(pipe, PROMPT), wanted)
        with pytest.raises(PerfusionError, match="temperature of '<bean>' must be positive"):
            applied.set("<bean>", temperature=0.0)
        with pytest.raises(PerfusionError, match="no concept with the word '<cat>'"):
            applied.set("<cat>", bias=1.0)


def test_load_and_unload_one_by_one_equal_apply(pipe, bean, mug, tmp_path):
    mug.save(tmp_path / "mug.safetensors", dtype=torch.float32)
    with apply(pipe, [bean, mug]):
        both = picture(pipe, PROMPT)
    with apply(pipe, bean):
        one = picture(pipe, "a photo of a <bean>")
    load(pipe, bean)
    load(pipe, tmp_path / "mug.safetensors")
    assert np.array_equal(picture(pipe, PROMPT), both)
    with pytest.raises(PerfusionError, match=r"a concept with the word '<mug>' is in"):
        load(pipe, mug)
    with pytest.raises(PerfusionError, match="concepts are already in this pipeline"):
        apply(pipe, bean)
    unload(pipe, "<mug>")
    assert np.array_equal(picture(pipe, "a photo of a <bean>"), one)
    unload(pipe)
    with pytest.raises(PerfusionError, match="no concept is in this pipeline"):
        unload(pipe)


def test_a_failed_load_leaves_what_was_in(pipe, bean):
    with apply(pipe, bean):
        before = picture(pipe, "a photo of a <bean>")
        twin = bean.renamed("<twin>")
        with pytest.raises(PerfusionError, match=r"<bean>, <twin> cannot be merged.*independent"):
            load(pipe, twin)
        assert np.array_equal(picture(pipe, "a photo of a <bean>"), before)
        with pytest.raises(PerfusionError, match="must have the same statistics"):
            load(pipe, random_concept(pipe, "<x>", seed=9, statistics="other"))


def test_a_dead_zone_changes_nothing_off_the_concept(pipe, bean):
    base = picture(pipe)
    with apply(pipe, bean, floor=10.0):
        assert np.array_equal(picture(pipe), base)
    with apply(pipe, bean):
        paper = np.abs(picture(pipe) - base).mean()
    assert paper > 0


def test_concepts_of_another_kind_of_model_are_refused(pipe, bean):
    other = pipelines.stable_diffusion_xl()
    with pytest.raises(PerfusionError, match="learned on another kind of model"):
        apply(other, bean)


def test_keys_are_made_anew_on_a_fine_tuned_model(pipe, bean):
    tuned = pipelines.stable_diffusion()
    with torch.no_grad():
        for module in Parts(tuned).targets.modules(tuned.unet).values():
            module.weight.mul_(1.1)
    with pytest.warns(rk.RankeditWarning, match="keys are made anew"):
        there = apply(tuned, bean)
    name = Parts(tuned).targets.keys[0]
    moved = there.edits[name].targets
    there.detach()
    with apply(pipe, bean) as here:
        torch.testing.assert_close(moved, 1.1 * here.edits[name].targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_precision_of_the_same_weights_is_no_other_model(pipe, bean, mug, dtype):
    half = pipelines.stable_diffusion().to(dtype)
    learned = dataclasses.replace(mug, base=base_of(Parts(half)), sketch=sketch_of(Parts(half)))
    assert learned.base != bean.base
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply(half, bean).detach()
        apply(pipe, [bean, learned]).detach()


def test_concepts_of_other_weights_are_not_merged(pipe, bean):
    tuned = pipelines.stable_diffusion()
    with torch.no_grad():
        for module in Parts(tuned).targets.modules(tuned.unet).values():
            module.weight.mul_(1.1)
    mug = random_concept(tuned, "<mug>", "teddy bear", statistics=bean.statistics)
    with pytest.raises(PerfusionError, match="base models with different weights"):
        apply(pipe, [bean, mug])
    with pytest.raises(PerfusionError, match="base models with different weights"):
        apply(pipe, [bean, dataclasses.replace(mug, sketch="")])


def test_the_global_lock_gives_the_keys_of_the_category_prompt(pipe, mug):
    prompt = "a photo of a <mug> on grass"
    plain = "a photo of a teddy bear on grass"
    targets = Parts(pipe).targets
    base = recorded(pipe, plain)
    with apply(pipe, mug, lock="global", strength=0.0):
        seen = recorded(pipe, prompt)
    key, value = targets.keys[0], targets.values[0]
    (ours, _), (theirs, _) = seen[key][0], base[key][0]
    # "teddy bear" is two tokens and the concept one: what follows moves by one.
    torch.testing.assert_close(ours[1, :5], theirs[1, :5])
    torch.testing.assert_close(ours[1, 5:-1], theirs[1, 6:])
    torch.testing.assert_close(ours[0], theirs[0])  # the empty negative prompt
    assert not torch.allclose(seen[value][0][0][1], theirs[1])
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize("make", ["stable_diffusion_xl", "pixart", "sana"])
@pytest.mark.parametrize("lock", ["local", "global"])
def test_other_families_work_and_are_restored(make, lock):
    pipe = getattr(pipelines, make)()
    size = 64 if make == "sana" else 16
    settings = {"num_inference_steps": 1, "height": size, "width": size, "output_type": "np"}
    if make != "stable_diffusion_xl":
        settings["use_resolution_binning"] = False

    def run(prompt):
        return pipe(prompt, generator=torch.Generator().manual_seed(0), **settings).images

    before = run("a photo of a cat")
    concept = random_concept(pipe)
    with apply(pipe, concept, lock=lock, bias=0.2):
        inside = run("a photo of a <bean>")
    assert np.isfinite(inside).all()
    assert not np.array_equal(inside, before)
    assert np.array_equal(run("a photo of a cat"), before)


def test_joint_attention_is_refused_with_the_reason():
    with pytest.raises(PipelineError, match="text and picture attend jointly"):
        find_targets(pipelines.stable_diffusion_3())


def test_prompt_embeddings_passed_by_hand(pipe, bean):
    with apply(pipe, bean):
        wanted = picture(pipe, "a photo of a <bean>")
        positive, negative = pipe.encode_prompt("a photo of a <bean>", "cpu", 1, True)
        given = picture(pipe, None, prompt_embeds=positive, negative_prompt_embeds=negative)
    assert np.array_equal(wanted, given)


def test_a_copy_of_the_pipeline_is_not_touched(pipe, bean):
    twin = copy.deepcopy(pipe)
    before = picture(twin)
    with apply(pipe, bean):
        assert np.array_equal(picture(twin), before)


def test_other_pipelines_of_the_same_parts(pipe, bean):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
    from PIL import Image

    parts = {**pipe.components, "requires_safety_checker": False}
    image = Image.effect_noise((16, 16), 60).convert("RGB")
    for kind, extra in (
        (StableDiffusionImg2ImgPipeline, {}),
        (StableDiffusionInpaintPipeline, {"mask_image": Image.new("L", (16, 16), 255)}),
    ):
        other = kind(**parts)
        other.set_progress_bar_config(disable=True)

        def run(prompt, other=other, extra=extra):
            generator = torch.Generator().manual_seed(0)
            arguments = {"image": image, "strength": 0.9, "num_inference_steps": 2, **extra}
            if "mask_image" in extra:
                arguments |= {"height": 16, "width": 16}
            return other(prompt, generator=generator, output_type="np", **arguments).images

        before = run("a cat")
        with apply(other, bean, bias=0.3):
            assert not np.array_equal(run("a <bean>"), before)
        assert np.array_equal(run("a cat"), before)


def test_an_offloaded_pipeline(pipe, bean):
    accelerate = pytest.importorskip("accelerate")
    with apply(pipe, bean):
        wanted = picture(pipe, "a photo of a <bean>")
    offloaded = pipelines.stable_diffusion()
    plain = picture(offloaded)
    for part in (offloaded.text_encoder, offloaded.vae, offloaded.unet):
        accelerate.cpu_offload(part, execution_device="cpu")
    with apply(offloaded, bean):
        np.testing.assert_allclose(picture(offloaded, "a photo of a <bean>"), wanted, atol=1e-5)
    assert np.array_equal(picture(offloaded), plain)


def test_sliced_attention(pipe, bean):
    with apply(pipe, bean):
        whole = picture(pipe, "a photo of a <bean>")
        pipe.enable_attention_slicing(1)
        sliced = picture(pipe, "a photo of a <bean>")
        pipe.disable_attention_slicing()
    np.testing.assert_allclose(whole, sliced, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_denoiser_follows_settings_without_compiling_again(bean):
    pipe = pipelines.stable_diffusion()
    with apply(pipe, bean, bias=0.4, temperature=0.2):
        wanted = picture(pipe, "a photo of a <bean>")
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    pipe.unet = torch.compile(pipe.unet, backend=counter)
    with apply(pipe, bean) as applied:
        picture(pipe, "a photo of a <bean>")
        frames = counter.frame_count
        applied.set(bias=0.4, temperature=0.2)
        got = picture(pipe, "a photo of a <bean>")
        assert counter.frame_count == frames > 0
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_the_weights_of_concepts_scale_what_each_adds_and_removes(count):
    generator = torch.Generator().manual_seed(0)
    keys, targets = (torch.randn(count, n, generator=generator) for n in (8, 5))
    weight, x = torch.randn(5, 8, generator=generator), torch.randn(20, 8, generator=generator)
    edit = rk.GatedEdit(keys, targets, rk.Metric.identity(8))
    weights = torch.tensor([0.5, 0.0, 2.0])[:count]
    weighted = Weighted(edit, weights)
    check_edit(weighted)
    wide = keys.double()
    coordinates = torch.linalg.solve(wide @ wide.T, wide @ x.double().T).T
    parts = [
        edit.opening(x)[:, [j]] * targets[[j]].double()
        - coordinates[:, [j]] * (wide[[j]] @ weight.double().T)
        for j in range(count)
    ]
    expected = sum(float(w) * part for w, part in zip(weights, parts, strict=True))
    added = weighted.added(x, weighted.bind(lambda k: k @ weight.T))
    torch.testing.assert_close(added.double(), expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------ what is remembered


@pytest.fixture
def weighted():
    """Two concepts' edit of a layer, and the layer with it."""
    generator = torch.Generator().manual_seed(0)
    keys, targets = (torch.randn(2, n, generator=generator) for n in (8, 5))
    layer = torch.nn.Linear(8, 5)
    edit = Weighted(rk.GatedEdit(keys, targets, rk.Metric.identity(8)), torch.ones(2))
    with rk.attach(layer, edit) as attached:
        yield layer, edit, attached


def computed(monkeypatch):
    """How often coefficients are worked out from here on."""
    calls = []
    plain = Weighted._coefficients
    monkeypatch.setattr(
        Weighted, "_coefficients", lambda *args: calls.append(1) or plain(*args)
    )  # fmt: skip
    return calls


def anew(layer, edit, x):
    """The layer's output for an input that was never seen."""
    edit.remembered.forget()
    found = layer(x.clone())
    edit.remembered.forget()
    return found


@torch.no_grad()
def test_coefficients_are_worked_out_once_for_an_input(weighted, monkeypatch):
    layer, edit, _ = weighted
    calls = computed(monkeypatch)
    x = torch.randn(3, 4, 8)
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x.view(3, 4, 8)), first)  # another view of the same numbers
    assert len(calls) == 1
    torch.testing.assert_close(first, anew(layer, edit, x), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda x, _: x.mul_(2),
        lambda x, _: (x[:1].add_(1), x)[1],
        lambda x, _: x[1:] if len(x) == 4 else x,
        lambda x, _: x.transpose(0, 1),
        lambda x, attached: attached.set(bias=0.1) or x,
        lambda x, attached: attached.set(temperature=0.5) or x,
        lambda x, attached: attached.set(weights=torch.tensor([1.0, 0.5])) or x,
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_input_or_setting_is_worked_out_anew(weighted, change, dtype):
    layer, edit, attached = weighted
    layer.to(dtype)
    x = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    layer(x)
    other = change(x, attached)
    found = layer(other)
    assert torch.equal(found, anew(layer, edit, other))


@torch.no_grad()
def test_views_of_one_tensor_are_told_apart(weighted):
    _, edit, _ = weighted
    tensors = edit.bind(lambda keys: torch.zeros(len(keys), 5))
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    views = [x[:4], x[4:], x[::2], x[:4, :], x.T, x.reshape(2, 4, 8), x]
    for view in [*views, *reversed(views)]:
        found = edit.added(view, tensors)
        edit.remembered.forget()
        torch.testing.assert_close(found, edit.added(view.clone(), tensors), rtol=1e-6, atol=1e-6)
        edit.added(view, tensors)


@torch.no_grad()
def test_a_copied_model_keeps_settings_and_memory_of_its_own(weighted):
    layer, _, attached = weighted
    both = torch.nn.ModuleList([layer])
    twin = copy.deepcopy(both)[0]
    x = torch.randn(4, 8)
    before = twin(x)
    attached.set(bias=-3.0)
    assert not torch.equal(layer(x), before)
    assert torch.equal(twin(x), before)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(twin)(x), before)
    made = copy.deepcopy(twin)
    assert torch.equal(made(x), before)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_follows_other_inputs(weighted):
    layer, edit, _ = weighted
    x, other = torch.randn(2, 4, 8)
    layer(x)
    traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(other), anew(layer, edit, other))


def test_learned_weights_are_not_remembered():
    keys = torch.eye(2)
    edit = Weighted(rk.GatedEdit(keys, keys, rk.Metric.identity(2)), torch.ones(2).requires_grad_())
    tensors = edit.bind(lambda k: k)
    x = torch.randn(3, 2)
    with torch.no_grad():
        edit.added(x, tensors)
    for _ in range(2):
        edit.weights.grad = None
        edit.added(x, tensors).sum().backward()
        assert float(edit.weights.grad.abs().sum()) > 0


def test_graphs_are_never_remembered(weighted):
    layer, _, _ = weighted
    x = torch.randn(4, 8, requires_grad=True)
    found = []
    for _ in range(2):  # a graph that was kept would have been freed
        x.grad = None
        layer(x).sum().backward()
        found.append(x.grad)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], layer.weight.sum(0).expand_as(x))  # the edit's part, too
    with torch.inference_mode():
        seen = torch.randn(4, 8)
        layer(seen)
    inputs = torch.randn(4, 8)
    with torch.inference_mode():
        layer(inputs)
    layer(inputs).sum().backward()
    assert layer.weight.grad is not None


def test_a_picture_works_its_coefficients_out_once_for_keys_and_once_for_values(
    pipe, bean, mug, monkeypatch
):
    calls = computed(monkeypatch)
    with apply(pipe, [bean, mug]) as applied:
        first = picture(pipe, "a <bean> and a <mug>")
        assert len(calls) == 2
        applied.set(bias=0.2)
        assert not np.array_equal(picture(pipe, "a <bean> and a <mug>"), first)
        assert len(calls) == 4


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("floor", [float("nan"), float("inf"), True, "low"])
def test_a_dead_zone_that_is_no_similarity_is_refused(pipe, bean, floor):
    with pytest.raises(PerfusionError, match=r"floor must be a similarity such as 0\.5"):
        apply(pipe, bean, floor=floor)


@pytest.mark.parametrize("concepts", [None, 3])
def test_what_is_no_concept_is_refused(pipe, concepts):
    with pytest.raises(PerfusionError, match="apply: concepts must be concepts or their files"):
        apply(pipe, concepts)


def test_settings_that_fail_change_nothing(pipe, bean, mug):
    with apply(pipe, bean) as applied:
        before = applied.settings
        with pytest.raises(rk.RankeditError):
            applied.set(bias=float("inf"))
        assert applied.settings == before
        with pytest.raises(PerfusionError, match="unknown setting 'floor'; a concept has a bias"):
            applied.load(mug, floor=0.3)
        assert applied.triggers == ("<bean>",)
    with pytest.raises(PerfusionError, match="no concept with the word '<bean>'"):
        applied.set("<bean>", bias=0.5)
