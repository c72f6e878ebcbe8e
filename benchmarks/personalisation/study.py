"""What a study is: its folder, its world, its methods, and what is known of them already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from baselines import METHODS
from rankedit_recipes import sandbox

from personalisation.ablations import ablations
from personalisation.choosing import Choice, chosen, slug
from personalisation.methods import Artefact, Method, trained
from personalisation.perfusions import Perfusion
from personalisation.prompts import Prompt
from personalisation.world import World

Asked = list[tuple[Prompt, int]]


class Study:
    """What units of work, tables and pages are given; it knows none of them.

    Args:
        folder: where everything is kept.
        world: the world.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world, self.plan = folder, world, world.plan
        self.perfusion = Perfusion(world.moment)
        self.methods: dict[str, Method] = {"Perfusion": self.perfusion, **METHODS}
        self.ablations = ablations(world.moment, world.captions, world.statistics)

    def choice(self, method: Method) -> Choice | None:
        """The setting that the search chose; None while it is not done."""
        return chosen(
            method, self.plan, self.methods, self.folder / "search", self.world.search_concepts()
        )

    def artefacts(self, method: Method, concept: sandbox.Concept, choice: Choice) -> list[Artefact]:
        """A method's files of a concept of the study."""
        folder = self.folder / "trained" / slug(method.name) / f"{concept.name}-{choice.rate:g}"
        settings = self.world.settings(choice.rate)
        return trained(method, self.world.pipe, self.world.subject(concept), settings, folder)

    def marks(
        self, method: Method, artefact: Artefact, scale: float, concept: sandbox.Concept,
        asked: Asked, seeds: int = 1,
    ) -> dict[str, list]:  # fmt: skip
        """What the judges say about one setting."""
        with method.apply(self.world.sampler, artefact, scale):
            pixels = self.world.draw(asked, method.phrase(artefact.subject))
        marks = self.world.judges.marks(concept, pixels, [prompt for prompt, _ in asked])
        if seeds > 1:
            marks["diversity"] = self.world.judges.diversity(pixels, seeds)
        return rounded(marks)


def rounded(marks: Mapping[str, Sequence[float | None]]) -> dict[str, list]:
    """Marks as they are kept."""
    return {
        name: [None if mark is None else round(mark, 4) for mark in row]
        for name, row in marks.items()
    }
