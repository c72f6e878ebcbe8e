"""Teaching an erased concept anew: what is drawn, kept, and left behind."""

import contextlib

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes import concepts, perfusion
from rankedit_recipes.concepts.probing import prompts, relearning
from rankedit_recipes.concepts.probing.relearning import Curve, Point
from rankedit_recipes.diffusion.generating import Sampling
from rankedit_recipes.diffusion.parts import Parts
from safetensors.torch import load_file

from tests.diffusion import pipelines

CONTEXTS = ("a photo of a {}", "a {}")
ONE = Sampling(steps=1, guidance=1.0, batch=4)


@pytest.fixture(scope="module")
def pipe():
    pipe = pipelines.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def edited(pipe):
    return concepts.edit(pipe, [concepts.erase("cat", to="dog", contexts=CONTEXTS)], method="uce")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(3)]


def taught(pipe, pictures, steps, run=None, stop=None, seed=0):
    """Encodings of the learned word at each step, until a step where it is broken off."""
    learner = concepts.TextualInversion(batch=2)
    found = {}
    states = learner(pipe, pictures, "cat", CONTEXTS, steps, seed=seed, run=run)
    for step, phrase in states:
        with torch.no_grad():
            found[step] = Parts(pipe).text.encode([f"a photo of a {phrase}"]).embeds.clone()
        if step == stop:
            states.close()
            break
    return found


def judge(made, word):
    return [float(np.asarray(picture).mean() / 255) for picture in made]


def test_it_begins_as_the_erased_word_and_leaves_the_pipeline_as_it_was(pipe, pictures):
    with torch.no_grad():
        word = Parts(pipe).text.encode(["a photo of a cat"]).embeds
    found = taught(pipe, pictures, (0, 2))
    assert torch.equal(found[0], word)
    assert not torch.equal(found[2], word)
    assert "<probe>" not in pipe.tokenizer.get_vocab()
    with torch.no_grad():
        assert torch.equal(Parts(pipe).text.encode(["a photo of a cat"]).embeds, word)


def test_the_first_step_is_as_long_as_the_rate_in_spreads_of_the_table(pipe, pictures, tmp_path):
    taught(pipe, pictures, (0, 1), tmp_path)
    before, after = (load_file(tmp_path / f"inversion-{n}.safetensors")["row.0"] for n in (0, 1))
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    wanted = concepts.TextualInversion().rate * float(table[:1024].std())
    moved = (after - before).abs()
    # Adam's first step is the rate in every coordinate whose gradient is not all but zero.
    assert float((moved / wanted - 1).abs().median()) < 1e-2


def test_what_was_interrupted_goes_on_to_the_same_bits(pipe, pictures, tmp_path):
    whole = taught(pipe, pictures, (0, 2, 4))
    assert set(taught(pipe, pictures, (0, 2, 4), tmp_path, stop=2)) == {0, 2}
    resumed = taught(pipe, pictures, (0, 2, 4), tmp_path)
    assert all(torch.equal(resumed[step], whole[step]) for step in (0, 2, 4))
    assert not torch.equal(taught(pipe, pictures, (0, 2), seed=1)[2], whole[2])


def test_a_probe_has_the_curves_and_goes_on_from_its_folder(
    pipe, edited, pictures, tmp_path, monkeypatch
):
    given = {
        "learners": [concepts.TextualInversion(batch=2)], "steps": (0, 2), "pictures": 1,
        "photos": {"cat": pictures}, "neighbours": 1, "sampling": ONE, "run": tmp_path / "run",
    }  # fmt: skip
    found = concepts.probe(pipe, edited, judge, **given)
    [curve] = found.curves
    assert [point.step for point in curve.points] == [0, 2]
    assert curve.before == found.shares()["cat", "contexts"][0]
    found.save(tmp_path / "probe.html")
    page = (tmp_path / "probe.html").read_text()
    assert "How soon it is back" in page
    assert "cat, textual inversion" in page

    def none(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(relearning, "generate", none)
    again = concepts.probe(pipe, edited, judge, **given)
    assert [p.shown for p in again.curves[0].points] == [p.shown for p in curve.points]


def test_a_learner_may_be_any_callable_and_learns_on_the_edited_model(pipe, edited, pictures):
    seen = []

    class Mine:
        name = "mine"

        def __call__(self, given, examples, concept, templates, steps, *, seed, run):
            with torch.no_grad():
                layer = next(iter(Parts(given).projections.values()))
                seen.append(layer(torch.ones(1, layer.in_features)))
            yield 0, concept

    layer = next(iter(Parts(pipe).projections.values()))
    with torch.no_grad():
        plain = layer(torch.ones(1, layer.in_features))
    found = concepts.probe(
        pipe, edited, judge, learners=[Mine()], steps=(0,), pictures=1, neighbours=1,
        sampling=ONE, examples=1,
    )  # fmt: skip
    assert found.curves[0].learner == "mine"
    assert not torch.equal(seen[0], plain)
    with torch.no_grad():
        assert torch.equal(layer(torch.ones(1, layer.in_features)), plain)


@pytest.mark.parametrize("steps", [(), (50, 0), (0, 0), (0, 1.5), (-1, 2)])
def test_steps_that_do_not_rise_are_refused(pipe, edited, steps):
    with pytest.raises(concepts.ConceptsError, match=r"whole numbers that rise, such as"):
        concepts.probe(pipe, edited, judge, learners=[concepts.TextualInversion()], steps=steps)


def test_pictures_of_what_is_not_edited_are_refused(pipe, edited, pictures):
    with pytest.raises(concepts.ConceptsError, match=r"does not change 'dog'; pictures are of cat"):
        concepts.probe(pipe, edited, judge, photos={"dog": pictures})


def test_back_is_where_the_line_crosses_the_share():
    def curve(*shown):
        points = tuple(Point(s, v, ()) for s, v in zip((0, 50, 200), shown, strict=True))
        return Curve("cat", "mine", 0.8, points)

    assert curve(0.0, 0.2, 0.8).back() == pytest.approx(50 + 150 * 0.2 / 0.6)
    assert curve(0.5, 0.6, 0.8).back() == 0
    assert curve(0.0, 0.1, 0.3).back() is None
    assert "not back to half" in str(curve(0.0, 0.1, 0.3))
    assert curve(0.0, 0.1, 0.3).back(0.25) == pytest.approx(50 + 150 * 0.1 / 0.2)


def test_attributes_are_asked_for_before_a_noun():
    request = concepts.erase("blue", about="attribute")
    texts = Parts(pipelines.stable_diffusion()).text
    own = concepts.erase("blue", about="attribute", contexts=("a {} cat",))
    assert prompts.templates_of(texts, own) == ["a {} cat"]
    assert not set(prompts.templates_of(texts, request)) & set(prompts.UNSEEN)


def test_perfusion_teaches_on_the_edited_model_and_leaves_nothing(pipe, edited, pictures):
    moment = perfusion.second_moment(pipe, ["a photo of a cat", "a dog", "the house"])
    teacher = perfusion.Teacher(moment, perfusion.Config(batch=2))

    def values(edit):
        with edit.attach(pipe) if edit else contextlib.nullcontext():
            taught = teacher(pipe, pictures, "cat", ["a photo of a {}"], (0, 2), seed=0, run=None)
            first, (step, phrase) = next(taught), next(taught)
            assert (first, step) == ((0, "cat"), 2)
            assert "<probe>" in phrase
            [concept] = perfusion.active(pipe).concepts.values()
            taught.close()
        with pytest.raises(perfusion.PerfusionError, match="no concept is in this pipeline"):
            perfusion.active(pipe)
        return concept.targets

    whole, erased = values(None), values(edited)
    # It begins as what the category gives, which is another thing there.
    assert any(not torch.equal(whole[name], erased[name]) for name in whole)


def test_a_probe_has_perfusion_s_curve(pipe, edited, pictures):
    moment = perfusion.second_moment(pipe, ["a photo of a cat", "a dog", "the house"])
    found = concepts.probe(
        pipe, edited, judge, learners=[perfusion.Teacher(moment, perfusion.Config(batch=2))],
        steps=(0, 1), pictures=1, photos={"cat": pictures}, neighbours=1, sampling=ONE,
    )  # fmt: skip
    [curve] = found.curves
    assert (curve.learner, [point.step for point in curve.points]) == ("Perfusion", [0, 1])


@pytest.mark.parametrize("other", ["denoiser", "vae", "scheduler"])
def test_what_another_model_made_is_not_taken_from_the_folder(edited, pictures, tmp_path, other):
    made = []
    for changed in (False, True):
        pipe = pipelines.stable_diffusion()
        if changed and other == "scheduler":
            pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.018)
        elif changed:
            module = pipe.unet if other == "denoiser" else pipe.vae
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1.05)
        concepts.probe(pipe, edited, judge, pictures=1, neighbours=1, sampling=ONE, run=tmp_path)
        made.append(len(list(tmp_path.rglob("*.png"))))
    assert made[1] == 2 * made[0] > 0
