"""Debiasing: the update rule, the directions, and the loop that measures."""

import dataclasses
import random

import pytest
import torch
from PIL import Image
from rankedit_recipes import concepts, sandbox
from rankedit_recipes.concepts.commands.opening import open_clip, sandbox_captions
from rankedit_recipes.concepts.debiasing import steered
from rankedit_recipes.concepts.methods.own import named
from rankedit_recipes.concepts.prompts import read_prompts
from rankedit_recipes.concepts.shifting import read_shifts, shown_templates
from rankedit_recipes.diffusion.generating import Sampling
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.sandbox.images.renderer import render
from rankedit_recipes.sandbox.images.scenes import draw_single
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, COLOURS

import rankedit as rk
from tests.concepts.test_methods import check, eye, last, weights
from tests.diffusion import pipelines
from tests.problems import relative

CAT = concepts.balance("cat", {"red": 0.5, "blue": 0.25})
FEW = concepts.Steering(pictures=4, rounds=3, sampling=Sampling(steps=1, size=16))


@pytest.fixture(scope="module")
def pipe():
    made = pipelines.stable_diffusion().to(torch.float64)
    made.set_progress_bar_config(disable=True)
    return made


class Told:
    """Says what it was told to, round by round, and notes what it was shown."""

    def __init__(self, *rounds):
        self.rounds, self.seen = list(rounds), []

    def __call__(self, pictures, request):
        self.seen.append((len(pictures), request.name))
        return self.rounds[len(self.seen) - 1]


@pytest.mark.parametrize("amounts", [(0.7, 0.0), (0.25, -0.5)])
def test_a_balanced_concept_is_the_published_one(pipe, amounts):
    """Gandikota et al., arXiv 2308.14761: `v* = W (c + Σ α_i a_i)` under `λI + r rᵀ`."""
    c, held = last(pipe, "cat"), last(pipe, "dog")
    along = sum(a * last(pipe, word) for a, word in zip(amounts, ("red", "blue"), strict=True))
    middle = torch.linalg.inv(0.5 * eye(len(c)) + c @ c.T + held @ held.T)
    expected = {n: W + W @ along @ c.T @ middle for n, W in weights(pipe).items()}
    request = dataclasses.replace(CAT, amounts=amounts)
    check(pipe, concepts.edit(pipe, [request, concepts.hold("dog")], method="uce"), expected)


def test_in_contexts_a_direction_is_what_the_attribute_adds(pipe):
    settings = dataclasses.replace(named("covariance"), tokens="last")
    parts = Parts(pipe)
    templates = shown_templates(parts, CAT, settings)
    assert templates
    assert not any({"red", "blue"} & set(text.split()) for text in templates)
    found = read_shifts(parts, CAT, settings)
    for place, attribute in enumerate(("red", "blue")):
        phrase = f"{attribute} cat"
        with_it = read_prompts(parts, [t.format(phrase) for t in templates],
                               [phrase] * len(templates))  # fmt: skip
        ends = torch.cat([p.vectors[list(p.ends)] for p in with_it])
        assert relative(found.directions[place], ends - found.keys) < 1e-12
    rows = found.rows((1.0, 0.0))
    assert relative(rows.guides, found.keys + found.directions[0]) < 1e-12


def test_the_loop_follows_the_rule_and_keeps_the_best(pipe, tmp_path):
    """`α ← α + step (wanted − measured)`, and the last shares are of other noise."""
    judge = Told(
        ["red", "", "", ""],  # a quarter and none: short of both by a quarter
        ["red", "red", "blue", ""],  # met
        ["blue", "blue", "", ""],  # measured in the end
    )
    steering = dataclasses.replace(FEW, step=2.0)
    edited = concepts.debias(
        pipe, [CAT, concepts.hold("dog")], judge, method="uce", steering=steering,
        path=tmp_path / "best.safetensors", progress=False,
    )  # fmt: skip
    assert judge.seen == [(4, "cat")] * 3
    [request] = [r for r in edited.requests if r.kind == "balance"]
    assert request.amounts == (0.5, 0.5)
    assert request.measured == (0.0, 0.5)
    assert str(request) == "balance cat to red 50% (measured 0%), blue 25% (measured 50%)"
    again = concepts.edit(pipe, edited.requests, method="uce")
    assert relative(again.map.delta(), edited.map.delta()) < 1e-9
    loaded = concepts.Edited.load(tmp_path / "best.safetensors")
    assert loaded.requests == edited.requests
    # Like any other: another request comes, and goes without a trace.
    more = concepts.add(pipe, edited, [concepts.erase("cup")])
    assert relative(more.without("cup").map.delta(), edited.map.delta()) < 1e-9


def test_what_is_never_met_is_warned_of_and_the_best_round_is_kept(pipe):
    near, far = ["red", "red", "blue", "blue"], ["red", "", "", ""]
    with pytest.warns(rk.RankeditWarning, match="after 3 rounds a share of 'cat' is still 25%"):
        edited = concepts.debias(
            pipe, [CAT], Told(far, near, ["blue"] * 4, far), method="uce", steering=FEW,
            progress=False,
        )  # fmt: skip
    # The first of the two rounds that were a quarter away.
    assert edited.requests[0].amounts == (0.0, 0.0)
    assert float(edited.map.delta().norm()) == 0.0


def test_it_goes_on_from_what_was_found_and_ctrl_c_leaves_the_best(pipe, tmp_path):
    path = tmp_path / "best.safetensors"

    begun = dataclasses.replace(CAT, amounts=(0.0, 0.0))
    rounds = []

    def judge(pictures, request):
        rounds.append(request)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        return ["red", "", "", ""]

    with pytest.raises(KeyboardInterrupt, match=r"after 1 round; '.*' has the best"):
        concepts.debias(pipe, [begun], judge, method="uce", steering=FEW, path=path,
                        progress=False)  # fmt: skip
    kept = concepts.Edited.load(path)
    assert kept.requests[0].amounts == (0.0, 0.0)
    met = ["red", "red", "blue", ""]
    start = dataclasses.replace(CAT, amounts=(0.3, 0.1))
    edited = concepts.debias(pipe, [start], Told(met, met), method="uce", steering=FEW,
                             progress=False)  # fmt: skip
    assert edited.requests[0].amounts == (0.3, 0.1)
    with pytest.raises(KeyboardInterrupt, match="after 0 rounds; nothing was written"):
        concepts.debias(pipe, [start], lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
                        method="uce", steering=FEW, progress=False)  # fmt: skip


def test_the_rule_by_itself():
    assert steered((1.0, -1.0), (0.5, 0.5), (1.0, 0.0), 0.5) == (0.75, -0.75)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: concepts.balance("cat", {}), "shares of attributes are expected"),
        (lambda p: concepts.balance("cat", {"red": 0.7, "blue": 0.7}), "together at most 1"),
        (lambda p: concepts.balance("cat", {"red": -0.1}), "each from 0 to 1"),
        (lambda p: concepts.balance("cat", {"red": 0.5}, amounts=[1, 2]), "as many as the 1"),
        (lambda p: concepts.edit(p, [CAT], method="uce"), "call concepts.debias"),
        (lambda p: concepts.debias(p, [concepts.erase("cat")], Told()), "is to be balanced"),
        (lambda p: concepts.Steering(rounds=0), "out of range"),
        (lambda p: concepts.Steering(step=float("nan")), "out of range"),
        (lambda p: concepts.Steering(prompts=("a cat",)), "a prompt has one {}"),
        (
            lambda p: concepts.debias(p, [CAT], Told(["red"]), method="uce", steering=FEW,
                                      progress=False),
            "named 1 attributes for 4 pictures",
        ),
        (
            lambda p: concepts.debias(p, [CAT], Told(["", "", "red", "Red"]), method="uce",
                                      steering=FEW, progress=False),
            "the judge said 'Red' of pictures of 'cat', where 'red' was asked for",
        ),
        (
            lambda p: concepts.edit(
                p, [concepts.balance("cat", {"red": 1.0}, amounts=[1], contexts=["a red {}"])],
                method="uce"),
            "every context of 'cat' names one of its attributes",
        ),
        (
            lambda p: concepts.SandboxJudge()([], concepts.balance("dog", {"red": 1.0})),
            "tells the colours",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_balanced_is_refused(pipe, call, said):
    with pytest.raises(concepts.ConceptsError, match=said):
        call(pipe)


def drawn(category, count):
    """Pictures of one thing, and the colour of each."""
    rng, found = random.Random(0), []
    while len(found) < count:
        scene = draw_single(rng, skinned=0.0)
        if scene.things[0].category == category and scene.style == "photo":
            found.append((Image.fromarray(render(scene).pixels), scene.things[0].colour))
    return tuple(zip(*found, strict=True))


def test_the_sandboxs_judge_names_the_colours_that_were_drawn():
    request = concepts.balance("car", dict.fromkeys(COLOURS, 0.1))
    pictures, colours = drawn("car", 12)
    named_ = concepts.SandboxJudge()(pictures, request)
    assert sum(a == b for a, b in zip(named_, colours, strict=True)) >= 11
    cups, _ = drawn("cup", 4)
    assert concepts.SandboxJudge()(cups, request) == [""] * 4


def test_clip_names_the_nearest_attribute():
    request = concepts.balance("car", {"red": 0.5, "blue": 0.5})
    pictures, colours = drawn("car", 40)
    judge = concepts.ClipJudge(open_clip("sandbox"))
    shown = [p for p, colour in zip(pictures, colours, strict=True) if colour in request.to]
    told = [colour for colour in colours if colour in request.to]
    found = judge(shown, request)
    assert len(told) >= 5
    assert sum(a == b for a, b in zip(found, told, strict=True)) >= 0.8 * len(told)


def test_clip_and_the_sandboxs_judge_say_what_a_picture_shows():
    cars, colours = drawn("car", 12)
    cups, _ = drawn("cup", 12)
    clip = concepts.ClipPresence(open_clip("sandbox"), CATEGORIES)
    shown, other = (torch.tensor(clip(pictures, "car")) for pictures in (cars, cups))
    assert float(shown.mean()) > float(other.mean()) + 0.3
    judge = concepts.SandboxPresence()
    assert sum(judge(cars, "car")) >= 11
    assert sum(judge(cups, "car")) <= 1
    red = torch.tensor([colour == "red" for colour in colours]).float()
    assert float((torch.tensor(judge(cars, "red")) - red).abs().sum()) <= 1
    with pytest.raises(concepts.ConceptsError, match="and not 'dog'; give a judge of your own"):
        judge(cars, "dog")
    with pytest.raises(concepts.ConceptsError, match="CLIP tells 'car' from other words"):
        concepts.ClipPresence(open_clip("sandbox"), ["car"])(cars, "car")
    with pytest.raises(concepts.ConceptsError, match=r"'nowhere' cannot be opened.*Give --judge"):
        open_clip("nowhere")


@pytest.mark.slow
def test_on_the_sandbox_a_colour_becomes_more_frequent():
    pipe = sandbox.pipeline()
    pipe.set_progress_bar_config(disable=True)
    steering = concepts.Steering(
        pictures=16, rounds=5, step=3.0, tolerance=0.1,
        sampling=Sampling(steps=8, guidance=4.0, batch=12),
    )  # fmt: skip
    judge, shares = concepts.SandboxJudge(), []

    def noted(pictures, request):
        names = judge(pictures, request)
        shares.append(names.count("red") / len(names))
        return names

    edited = concepts.debias(
        pipe, [concepts.balance("car", {"red": 0.5})], noted, statistics=sandbox_captions(300),
        steering=steering, progress=False,
    )  # fmt: skip
    assert shares[0] <= 0.15
    assert edited.requests[0].amounts[0] > 0
    assert 0.25 <= edited.requests[0].measured[0] <= 0.75
