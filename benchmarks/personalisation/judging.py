"""What is trained, drawn and judged for one unit of the study."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from baselines import CategoryWord, Described
from rankedit_recipes import sandbox
from torch import Tensor

from personalisation.ablations import Ablation
from personalisation.attention import studied
from personalisation.choosing import Choice, slug
from personalisation.measures import real_photos
from personalisation.methods import Artefact, Method, trained
from personalisation.perfusions import Perfusion
from personalisation.prompts import Prompt, crossed, prompts_for, truth
from personalisation.study import Asked, Study, rounded


def searched(study: Study, method: Method, concept: sandbox.Concept, rate: float) -> list[dict]:
    """Train with one rate and judge every step and scale on a concept of the search."""
    folder = study.folder / "trained" / slug(method.name) / f"{concept.name}-{rate:g}"
    made = trained(method, study.world.pipe, study.world.subject(concept),
                   study.world.settings(rate), folder)  # fmt: skip
    asked = study.world.searched(concept)
    found = []
    for artefact in made:
        for scale in method.searched:
            marks = study.marks(method, artefact, scale, concept, asked)
            found.append({"rate": rate, "step": artefact.step, "scale": scale, "marks": marks})
    return found


def judged(study: Study, method: Method, concept: sandbox.Concept) -> dict | None:
    """All points of a method on a concept, and the further figures of its chosen setting."""
    choice = study.choice(method)
    if choice is None:
        return None
    made = study.artefacts(method, concept, choice)
    if method is study.perfusion:
        made, choice = made[-1:], Choice(choice.rate, made[-1].step, choice.scale)
    scales = list(method.scales) if study.plan.every_scale or method is study.perfusion else []
    points = []
    for artefact in made:
        for scale in dict.fromkeys([*scales, choice.scale]):
            final = (artefact.step, scale) == (choice.step, choice.scale)
            asked = study.world.asked(concept) if final else study.world.curve(concept)
            seeds = study.plan.seeds if final else 1
            marks = study.marks(method, artefact, scale, concept, asked, seeds)
            points.append({"step": artefact.step, "scale": scale, "marks": marks})
    best = next(artefact for artefact in made if artefact.step == choice.step)
    cost = json.loads((best.file.parent / "training.json").read_text())
    share = choice.step / study.plan.steps[-1]
    return {
        "choice": vars(choice),
        "points": points,
        "off": off(study, method, best, choice.scale, concept),
        "kilobytes": best.bytes / 1000,
        "train_seconds": cost["seconds"] * share,
        "train_megabytes": cost["megabytes"],
        "overhead": overhead(study, method, best, choice.scale),
    }


def references(study: Study, concept: sandbox.Concept) -> dict[str, dict]:
    """The ends of the scale: the base model, and real photos."""
    world, asked = study.world, study.world.asked(concept)
    prompts = [prompt for prompt, _ in asked]
    word = CategoryWord()
    made = trained(word, world.pipe, world.subject(concept), world.settings(0.0),
                   study.folder / "trained" / "category-word" / concept.name)  # fmt: skip
    copies = real_photos(concept, len(prompts), seed=9)
    drawn = truth(concept, prompts, seed=3)
    found = {
        **{
            one.name: study.marks(one, made[-1], 1.0, concept, asked, study.plan.seeds)
            for one in (word, Described(concept))
        },
        "prompts drawn with the concept": seen(study, concept, drawn, prompts),
        "photos whatever the prompt": seen(study, concept, copies, prompts),
    }
    off = world.judges.kept(
        world.base(concept, world.off(concept), 0), _prompts(world.off(concept))
    )
    leak = world.judges.identity(concept, world.draw(world.plain(concept), concept.category))
    return {"marks": found, "off": rounded({"off_kept": off, "leak": leak})}


def seen(study: Study, concept: sandbox.Concept, pixels: Tensor, prompts: list[Prompt]) -> dict:
    """Marks of pictures that no pipeline made."""
    marks = study.world.judges.marks(concept, pixels, prompts)
    if study.plan.seeds > 1:
        marks["diversity"] = study.world.judges.diversity(pixels, study.plan.seeds)
    return rounded(marks)


def off(
    study: Study, method: Method, artefact: Artefact, scale: float, concept: sandbox.Concept
) -> dict[str, list]:
    """What a concept in the pipeline does to prompts without it."""
    world, asked, plain = study.world, study.world.off(concept), study.world.plain(concept)
    before, reseeded = (world.base(concept, asked, shift) for shift in (0, 5_000_000))
    with method.apply(world.sampler, artefact, scale):
        pixels = world.draw(asked, "")
        own = world.draw(plain, concept.category)
    changed = (pixels.float() - before.float()).abs().mean((1, 2, 3))
    usual = (reseeded.float() - before.float()).abs().mean()
    return rounded({
        "off_kept": world.judges.kept(pixels, _prompts(asked)),
        "off_changed": (changed / usual).tolist(),
        "leak": world.judges.identity(concept, own),
    })  # fmt: skip


def overhead(
    study: Study, method: Method, artefact: Artefact, scale: float, pairs: int = 5
) -> float:
    """Time of a picture with the concept over that without, in turns, in float32."""
    asked, pipe = [(Prompt("a photo of a house on the grass", "grass"), 1)], study.world.pipe
    ratios = []
    for _ in range(pairs):
        bare = _seconds(lambda: study.world.draw(asked, "", pipe))
        with method.apply(pipe, artefact, scale):
            ratios.append(_seconds(lambda: study.world.draw(asked, "", pipe)) / bare)
    return statistics.median(ratios)


def attended(study: Study, concept: sandbox.Concept, count: int = 8) -> dict[str, Any] | None:
    """Attention of the word for the concept, by method, in pictures with a second object."""
    prompts = [p for p in prompts_for(concept.category, 3 * count) if p.other][:count]
    asked = crossed(prompts, 1, first=40_000)
    word = CategoryWord()
    found = {word.name: studied(study.world, concept, concept.category, asked)}
    for name in ("textual inversion", "Perfusion"):
        method = study.methods[name]
        choice = study.choice(method)
        if choice is None:
            return None
        made = [a for a in study.artefacts(method, concept, choice) if a.step == choice.step]
        with method.apply(study.world.sampler, made[-1], choice.scale):
            own = made[-1].subject
            found[name] = studied(study.world, concept, method.phrase(own), asked, own.word)
    return found


def ablated(study: Study, one: Ablation, concept: sandbox.Concept) -> list[dict] | None:
    """Perfusion with a change, at a few scales."""
    choice = study.choice(study.perfusion)
    if choice is None:
        return None
    if one.untrained:
        made = study.artefacts(study.perfusion, concept, choice)[-1]
    else:
        folder = study.folder / "trained" / "ablations" / slug(one.method.name) / concept.name
        subject = one.given(study.world.subject(concept, one.photos))
        settings = study.world.settings(choice.rate)
        made = trained(one.method, study.world.pipe, subject, settings, folder)[-1]
    asked = study.world.curve(concept)
    own = one.method.scales is not Perfusion.scales
    scales = one.method.scales if own else study.plan.ablation_scales
    return [{"scale": s, "marks": study.marks(one.method, made, s, concept, asked)} for s in scales]


def _prompts(asked: Asked) -> list[Prompt]:
    return [prompt for prompt, _ in asked]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
