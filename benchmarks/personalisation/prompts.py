"""What is asked for: prompts in which everything that can be obeyed is known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rankedit_recipes import sandbox
from rankedit_recipes.sandbox.images.renderer import render
from rankedit_recipes.sandbox.images.scenes import Scene, Thing, draw_pair, place_pair, rng_of
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, COLOURS, RELATIONS, SCENES
from torch import Tensor, from_numpy, stack

SIDES = ("left", "above", "right", "below")


@dataclass(frozen=True)
class Prompt:
    """A template with `{}` for the concept, and what the judge is to find.

    Attributes:
        text: the template.
        scene: the background asked for.
        other: category of the second object, or "".
        colour: of the second object, or "".
        relation: how the concept lies to the second object, or "".
    """

    text: str
    scene: str
    other: str = ""
    colour: str = ""
    relation: str = ""


def prompts_for(category: str, count: int) -> list[Prompt]:
    """New prompts for a concept: of three, one with it alone, two with a coloured object beside it.

    Any beginning of the list is balanced, and scenes, objects, colours and relations go round at
    different speeds.
    """
    others = [c for c in CATEGORIES if c != category]
    scenes, colours = list(SCENES), list(COLOURS)
    made = []
    for index in range(count):
        scene = scenes[(index + index // len(scenes)) % len(scenes)]
        place = SCENES[scene][index // len(scenes) % len(SCENES[scene])]
        if index % 3 == 0:
            made.append(Prompt(f"a photo of a {{}} {place}", scene))
            continue
        pair = index - index // 3 - 1
        other = others[(2 * pair + pair // len(others)) % len(others)]
        colour, side = colours[3 * pair % len(colours)], SIDES[pair % len(SIDES)]
        article = "an" if colour[0] in "aeiou" else "a"
        text = f"a photo of a {{}} {RELATIONS[side][0]} {article} {colour} {other} {place}"
        made.append(Prompt(text, scene, other, colour, side))
    return made


def off_prompts(category: str, count: int) -> list[Prompt]:
    """Prompts without any concept, of coloured objects of the other categories in scenes."""
    others = [c for c in CATEGORIES if c != category]
    scenes, colours = list(SCENES), list(COLOURS)
    made = []
    for index in range(count):
        other, colour = others[2 * index % len(others)], colours[5 * index % len(colours)]
        scene = scenes[index % len(scenes)]
        article = "an" if colour[0] in "aeiou" else "a"
        text = f"a photo of {article} {colour} {other} {SCENES[scene][0]}"
        made.append(Prompt(text, scene, other, colour))
    return made


def truth(concept: sandbox.Concept, prompts: Sequence[Prompt], seed: int) -> Tensor:
    """What the prompts ask for, drawn with the concept itself: pixels [n, 48, 48, 3]."""
    pictures = [_drawn(concept, prompt, seed) for prompt in prompts]
    return stack([from_numpy(render(scene).pixels) for scene in pictures])


def _drawn(concept: sandbox.Concept, prompt: Prompt, seed: int) -> Scene:
    rng = rng_of("truth", concept.name, prompt.text, seed)
    if not prompt.other:
        scene = concept.photos(1, seed=rng.randrange(2**31))[0].scene
        assert scene is not None  # drawn photos always have one
        return replace(scene, background=prompt.scene)
    looks = ((concept.category, None, concept.skin), (prompt.other, prompt.colour, None))
    scene = draw_pair(rng, looks)
    relation = prompt.relation or scene.relation
    centres = place_pair(rng, relation)
    things: list[Thing] = [
        replace(thing, x=x, y=y) for thing, (x, y) in zip(scene.things, centres, strict=True)
    ]
    return replace(
        scene, things=tuple(things), background=prompt.scene, style="photo", relation=relation
    )


def crossed(prompts: Sequence[Prompt], seeds: int, first: int) -> list[tuple[Prompt, int]]:
    """Every prompt with every seed; the seed of a picture depends on both, not on the method."""
    pairs = itertools.product(enumerate(prompts), range(seeds))
    return [(prompt, first + 1000 * seed + index) for (index, prompt), seed in pairs]
