"""What all methods share: the base model, its statistics, the concepts, the pictures."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rankedit_recipes import perfusion, sandbox
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.applying.base import base_of
from rankedit_recipes.perfusion.commands.opening import sandbox_captions
from rankedit_recipes.sandbox.images.concepts import NAMED
from torch import Tensor

from personalisation.measures import Judges, pixels_of
from personalisation.methods import Settings, Subject
from personalisation.prompts import Prompt, crossed, off_prompts, prompts_for

GUIDANCE = 4.0
RARE = ("toy", "pattern")
"""Words that the tokenizer has and no caption uses; neighbouring concepts take different ones."""


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    Attributes:
        concepts: half that ship, half generated ones.
        prompts: for each concept, at the setting that the search chose.
        seeds: for each prompt.
        curve_prompts: for each concept, at the other points of the plot, under one seed.
        steps: of each training at which its state is judged; Perfusion is judged at the last.
        batch: photos in a step.
        search: concepts, of others than those judged, on which each method's rate, step and scale
            are searched; 0 takes the methods' middle rate, last step and usual scale.
        rates: how many of each method's rates are searched, the highest ones.
        shared: LoRAs of other ranks take the setting that was found for rank 4.
        search_prompts: prompts of the search, with one seed each.
        off: prompts without the concept.
        ablations: concepts of the ablations, the first ones.
        ablation_scales: biases that each ablation is judged at.
        retrained: concepts on which methods are trained in other ways, too, the first ones.
        longer_steps: of the longer one of these trainings.
        pairs: pairs of concepts in one picture.
        pair_pictures: of each pair.
        sampling: denoising steps of a picture.
        half: draw in bfloat16; trainings are in float32 all the same.
        every_scale: judge baselines at every scale, else at the usual one.
    """

    concepts: int = 16
    prompts: int = 24
    seeds: int = 4
    curve_prompts: int = 12
    steps: tuple[int, ...] = (100, 200)
    batch: int = 8
    search: int = 3
    rates: int = 3
    shared: bool = False
    search_prompts: int = 24
    off: int = 24
    ablations: int = 4
    ablation_scales: tuple[float, ...] = (0.9, 0.7, 0.5)
    retrained: int = 4
    longer_steps: int = 500
    pairs: int = 8
    pair_pictures: int = 24
    sampling: int = 15
    half: bool = True
    every_scale: bool = True

    def changed(self, settings: Sequence[str]) -> Plan:
        """With `name=value` settings; tuples are written with commas.

        Raises:
            ValueError: an unknown name.
        """
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        values: dict[str, object] = {}
        for setting in settings:
            name, _, text = setting.partition("=")
            if name not in known or not text:
                raise ValueError(
                    f"plan: expected NAME=VALUE with one of {list(known)}: {setting!r}"
                )
            like = known[name]
            if isinstance(like, tuple):
                values[name] = tuple(type(like[0])(part) for part in text.split(","))
            else:
                flag = text in ("1", "True", "true")
                values[name] = flag if isinstance(like, bool) else int(text)
        return replace(self, **values)


QUICK = Plan(
    concepts=2, prompts=6, seeds=2, curve_prompts=6, steps=(60, 120), batch=4, search=0, off=6,
    ablations=1, ablation_scales=(0.7,), retrained=0, pairs=1, pair_pictures=8, sampling=10,
    every_scale=False,
)  # fmt: skip


class World:
    """The sandbox as the study uses it.

    Args:
        folder: where statistics are kept.
        plan: how large the study is.
        device: of the pipelines.

    Attributes:
        pipe: the pipeline that methods train, in float32.
        sampler: the same one for drawing, in the plan's precision.
    """

    def __init__(self, folder: Path, plan: Plan, device: str = "cpu") -> None:
        self.plan = plan
        self.pipe = _pipeline(device, torch.float32)
        self.sampler = _pipeline(device, torch.bfloat16) if plan.half else self.pipe
        self.judges = Judges()
        self.captions = sandbox_captions()
        self.folder = folder / "statistics"
        self.moment = self.statistics(self.captions)
        self.sampling = perfusion.Sampling(steps=plan.sampling, guidance=GUIDANCE, batch=12)
        self._base: dict[tuple[str, int], Tensor] = {}

    def statistics(self, captions: Sequence[str]):
        """Second moment of what cross-attention reads, kept once it was computed."""
        return perfusion.second_moment(self.pipe, captions, cache=self.folder, progress=False)

    def concepts(self) -> list[sandbox.Concept]:
        """Those that are judged, shipped and generated ones in turns."""
        pairs = zip(NAMED, range(500, 500 + len(NAMED)), strict=True)
        every = [sandbox.concept(which) for pair in pairs for which in pair]
        return every[: self.plan.concepts]

    def search_concepts(self) -> list[sandbox.Concept]:
        """Those on which settings are searched."""
        return [sandbox.concept(700 + index) for index in range(self.plan.search)]

    def subject(self, concept: sandbox.Concept, photos: int = 5) -> Subject:
        """A concept as methods get it."""
        given = tuple(
            perfusion.Photo(str(index), photo.image, photo.mask)
            for index, photo in enumerate(concept.photos(photos))
        )
        names = [c.name for c in self.concepts()]
        number = names.index(concept.name) if concept.name in names else 0
        return Subject(concept.name, concept.category, given, RARE[number % len(RARE)])

    def settings(self, rate: float) -> Settings:
        """Training settings with a rate."""
        return Settings(rate=rate, steps=self.plan.steps, batch=self.plan.batch)

    def asked(self, concept: sandbox.Concept) -> list[tuple[Prompt, int]]:
        """Prompts and seeds of a concept, prompt by prompt."""
        prompts = prompts_for(concept.category, self.plan.prompts)
        return crossed(prompts, self.plan.seeds, first=20_000)

    def curve(self, concept: sandbox.Concept) -> list[tuple[Prompt, int]]:
        """Fewer of them, for points of the plot and ablations."""
        prompts = prompts_for(concept.category, self.plan.curve_prompts)
        return crossed(prompts, 1, first=20_000)

    def searched(self, concept: sandbox.Concept) -> list[tuple[Prompt, int]]:
        """Prompts and seeds of the search: other ones than those of the study."""
        prompts = prompts_for(concept.category, self.plan.search_prompts + 5)[5:]
        return crossed(prompts, 1, first=90_000)

    def off(self, concept: sandbox.Concept) -> list[tuple[Prompt, int]]:
        """Prompts without the concept, and seeds."""
        return crossed(off_prompts(concept.category, self.plan.off), 1, first=50_000)

    def plain(self, concept: sandbox.Concept) -> list[tuple[Prompt, int]]:
        """Prompts with the category's plain word, and seeds."""
        prompts = prompts_for(concept.category, 3 * (self.plan.off // 2))[::3]
        return crossed(prompts, 1, first=60_000)

    def draw(self, asked: Sequence[tuple[Prompt, int]], phrase: str, pipe: Any = None) -> Tensor:
        """Pictures [n, height, width, 3] of prompts with a phrase in them, by the sampler."""
        texts = [prompt.text.format(phrase) for prompt, _ in asked]
        seeds = [seed for _, seed in asked]
        return pixels_of(perfusion.generate(pipe or self.sampler, texts, seeds, self.sampling))

    def base(self, concept: sandbox.Concept, asked: list[tuple[Prompt, int]], shift: int) -> Tensor:
        """Pictures of the untouched pipeline, kept; `shift` moves all seeds."""
        key = (concept.category, shift)
        if key not in self._base:
            moved = [(prompt, seed + shift) for prompt, seed in asked]
            self._base[key] = self.draw(moved, concept.category)
        return self._base[key]

    def provenance(self) -> dict[str, object]:
        """What the numbers depend on."""
        return {
            "revision": revision(),
            "base_model": base_of(Parts(self.pipe)),
            "captions": len(self.captions),
            "guidance": GUIDANCE,
            "plan": asdict(self.plan),
        }


def _pipeline(device: str, dtype: torch.dtype) -> Any:
    pipe = sandbox.pipeline(dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def revision() -> str:
    """The git revision of this file's repository; says so if files differ from it."""
    call = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    found = subprocess.run(call, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"
