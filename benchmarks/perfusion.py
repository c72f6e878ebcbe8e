"""Perfusion on the sandbox: learn concepts, draw new prompts, let the judges say what came of it.

    python benchmarks/perfusion.py --concepts 16 --prompts 24 --out perfusion-study

Concepts are kept in the folder as they are learned, so that a second run goes on. Everything is a
function of the seed. Figures are printed with their spread over concepts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rankedit_recipes import perfusion, sandbox
from rankedit_recipes.perfusion.config import Config
from rankedit_recipes.perfusion.data import cached_latents, draw, picture_size
from rankedit_recipes.perfusion.denoising import run_denoiser
from rankedit_recipes.perfusion.freezing import frozen
from rankedit_recipes.perfusion.learner import Learner
from rankedit_recipes.perfusion.loss import masked_loss, noise_scheduler, target_of
from rankedit_recipes.perfusion.models import sandbox_captions
from rankedit_recipes.perfusion.stepping import Stepper
from rankedit_recipes.perfusion.text import encode
from rankedit_recipes.perfusion.words import NewWords
from rankedit_recipes.sandbox.images.concepts import NAMED
from rankedit_recipes.sandbox.images.identity import embed
from rankedit_recipes.sandbox.images.judge import judge
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, SCENES
from torch import Tensor

WORD = "<it>"
BIASES = (0.2, 0.4, 0.6, 0.7, 0.8, 1.0, 1.5)


@dataclass(frozen=True)
class Prompt:
    """A template and what the judge is to find."""

    text: str
    scene: str
    other: str = ""


@dataclass(frozen=True)
class Judged:
    """Means over the prompts of one concept; identity: 0 a random skin, 1 another real photo."""

    identity: float
    category: float
    scene: float
    other: float

    @property
    def text(self) -> float:
        """Text fidelity: scene obeyed and second object present, equally weighted."""
        return (self.scene + self.other) / 2


def prompts_for(category: str, count: int) -> list[Prompt]:
    """Half of one object in a scene, half with a second object of another category."""
    scenes = list(SCENES)
    others = [c for c in CATEGORIES if c != category]
    made = []
    for index in range(count):
        scene = scenes[index % len(scenes)]
        phrase = SCENES[scene][index // 2 % len(SCENES[scene])]
        other = others[index % len(others)] if index % 2 else ""
        pair = f" next to a {other}" if other else ""
        made.append(Prompt(f"a photo of a {{}}{pair} {phrase}", scene, other))
    return made


class Study:
    """The pipeline, the judges, and the numbers that everything is drawn from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = Path(args.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pipe = sandbox.pipeline(Path(args.weights) if args.weights else None)
        self.pipe.set_progress_bar_config(disable=True)
        self.judge, self.identity = sandbox.attribute_judge(), sandbox.identity_embedding()
        self.moment = perfusion.second_moment(self.pipe, sandbox_captions(), cache=self.folder)
        self.sampling = perfusion.Sampling(steps=args.sampling, guidance=4.0, batch=8)

    def concepts(self) -> list[sandbox.Concept]:
        """Half that ship, half generated ones."""
        named = [sandbox.concept(name) for name in list(NAMED)[: (self.args.concepts + 1) // 2]]
        return named + [sandbox.concept(seed) for seed in range(500, 500 + self.args.concepts // 2)]

    def learned(self, concept: sandbox.Concept, photos: int) -> perfusion.Concept:
        """The concept's file, made if it is not there."""
        name = f"{concept.name}-{photos}"
        file = self.folder / f"{name}.safetensors"
        if not file.exists():
            given = [
                perfusion.Photo(str(i), photo.image, photo.mask)
                for i, photo in enumerate(concept.photos(photos))
            ]
            config = Config(steps=self.args.steps)
            start = time.perf_counter()
            made = perfusion.learn(
                self.pipe, given, placeholder=f"<{concept.name}>", category=concept.category,
                statistics=self.moment, config=config, progress=False,
            )  # fmt: skip
            print(f"  learned {name} in {time.perf_counter() - start:.0f} s", flush=True)
            made.save(file)
        return perfusion.Concept.load(file)

    # ------------------------------------------------------------------ judging

    def drawn(self, texts: Sequence[str], seed: int = 1000) -> Tensor:
        """Pictures of prompts as 8-bit numbers [n, size, size, 3]."""
        made = perfusion.generate(self.pipe, texts, range(seed, seed + len(texts)), self.sampling)
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in made]))

    def seen(self, concept: sandbox.Concept, pixels: Tensor, prompts: Sequence[Prompt]) -> Judged:
        """What the judges say about pictures of a concept."""
        verdict = judge(self.judge, pixels)
        scenes = torch.tensor([list(SCENES).index(p.scene) for p in prompts])
        index = CATEGORIES.index(concept.category)
        pairs = [i for i, p in enumerate(prompts) if p.other]
        others = [bool(verdict.present[i, CATEGORIES.index(prompts[i].other)] > 0) for i in pairs]
        return Judged(
            identity=self.scaled_identity(concept, pixels),
            category=float((verdict.present[:, index] > 0).float().mean()),
            scene=float((verdict.scene.argmax(1) == scenes).float().mean()),
            other=float(np.mean(others)) if others else float("nan"),
        )

    def scaled_identity(self, concept: sandbox.Concept, pixels: Tensor) -> float:
        """Similarity to real photos: 0 for random skins of the category, 1 for other photos."""
        anchor = self.vectors(concept, self.photos(concept, 8, seed=7)).mean(0)
        real = self.vectors(concept, self.photos(concept, 8, seed=8)) @ anchor
        random = [sandbox.concept(9000 + i, category=concept.category) for i in range(8)]
        others = torch.cat([self.vectors(c, self.photos(c, 2, seed=8)) for c in random]) @ anchor
        made = self.vectors(concept, pixels) @ anchor
        return float((made.mean() - others.mean()) / (real.mean() - others.mean()))

    def photos(self, concept: sandbox.Concept, count: int, seed: int) -> Tensor:
        """Real pictures of a concept that it was not learned from."""
        images = [np.asarray(photo.image) for photo in concept.photos(count, seed=seed)]
        return torch.from_numpy(np.stack(images))

    def vectors(self, concept: sandbox.Concept, pixels: Tensor) -> Tensor:
        """Identity embeddings of the object of the concept's category."""
        return embed(self.identity, self.judge, pixels, concept.category)

    # ------------------------------------------------------------------ the questions

    def judged(
        self, concept: sandbox.Concept, made: perfusion.Concept | None, **how: object
    ) -> Judged:
        """New prompts with the concept, or with the category's word if there is none."""
        prompts = prompts_for(concept.category, self.args.prompts)
        if made is None:
            pixels = self.drawn([p.text.format(concept.category) for p in prompts])
        else:
            with perfusion.apply(self.pipe, made, **how):
                pixels = self.drawn([p.text.format(made.trigger) for p in prompts])
        return self.seen(concept, pixels, prompts)

    def off_concept(self, made: perfusion.Concept, **how: object) -> float:
        """How much less prompts without the concept change by it than by another seed."""
        texts = [p.text.format(p.other or "tree") for p in prompts_for(made.category, 8)]
        texts = [text.replace(made.category, "tree") for text in texts]
        base, reseeded = self.drawn(texts).float(), self.drawn(texts, seed=5000).float()
        with perfusion.apply(self.pipe, made, **how):
            inside = self.drawn(texts).float()
        changed = float((inside - base).abs().mean())
        return float("inf") if not changed else float((reseeded - base).abs().mean()) / changed

    def together(
        self, first: tuple, second: tuple, anchors: dict[str, Tensor]
    ) -> tuple[float, float]:
        """Share of pictures in which both are present and each is nearest to itself of all."""
        (one, made_one), (two, made_two) = first, second
        text = f"a photo of a {made_one.trigger} next to a {made_two.trigger}"
        with perfusion.apply(self.pipe, [made_one, made_two]):
            pixels = self.drawn([text] * self.args.prompts)
        present = judge(self.judge, pixels).present
        right = torch.ones(len(pixels), dtype=torch.bool)
        both = torch.ones(len(pixels), dtype=torch.bool)
        table, names = torch.stack(list(anchors.values())), list(anchors)
        for concept in (one, two):
            both &= present[:, CATEGORIES.index(concept.category)] > 0
            nearest = (self.vectors(concept, pixels) @ table.T).argmax(1)
            right &= nearest == names.index(concept.name)
        return float((both & right).float().mean()), float(both.float().mean())

    # ------------------------------------------------------------------ cost

    def step_times(self, concept: sandbox.Concept, count: int = 12) -> tuple[float, float]:
        """Seconds of a step of Perfusion and of one that learns the word alone, in turns."""
        config = Config(batch=8)
        given = [perfusion.Photo(str(i), p.image, p.mask) for i, p in enumerate(concept.photos(5))]
        data = cached_latents(self.pipe, given, picture_size(self.pipe, 0))
        learner = Learner(self.pipe, concept.category, perfusion.metric_of(self.moment), config)
        prompts = [template.format(WORD) for template in config.templates]
        ours, theirs = [], []
        with frozen(self.pipe, checkpointing=False):
            words = NewWords(self.pipe, {WORD: learner.rows})
            optimiser = torch.optim.AdamW(learner.rows, lr=1e-3)
            for step in range(count):
                stepper = Stepper(self.pipe, learner, data, WORD, prompts, config)
                ours.append(_seconds(lambda s=stepper, n=step: s.step(n)))
                stepper.detach()
                theirs.append(
                    _seconds(lambda n=step: self._inversion(data, prompts, optimiser, config, n))
                )
            words.remove()
        return statistics.median(ours[2:]), statistics.median(theirs[2:])

    def _inversion(
        self, data, prompts: list[str], optimiser: torch.optim.Optimizer, config: Config, step: int
    ) -> None:
        scheduler = noise_scheduler(self.pipe)
        drawn = draw(data, len(prompts), 1000, config.batch, flip=True, seed=0, step=step)
        unique, back = drawn.prompts.unique(return_inverse=True)
        text = encode(self.pipe, [prompts[i] for i in unique]).rows(back)
        latents = data.latents[drawn.photos]
        noisy = scheduler.add_noise(latents, drawn.noise, drawn.times)
        predicted = run_denoiser(self.pipe, noisy, drawn.times, text)
        wanted = target_of(scheduler, latents, drawn.noise, drawn.times)
        ones = torch.ones(config.batch)
        masked_loss(predicted, wanted, data.masks[drawn.photos], ones, "weighted").backward()
        optimiser.step()
        optimiser.zero_grad()

    def picture_times(self, made: Sequence[perfusion.Concept], count: int = 5) -> list[float]:
        """Seconds of a picture with none, one and two concepts in the pipeline, in turns."""
        found: list[list[float]] = [[], [], []]
        for _ in range(count):
            for number, times in enumerate(found):
                if number:
                    with perfusion.apply(self.pipe, list(made[:number])):
                        times.append(_seconds(lambda: self.drawn(["a photo of a cat"])))
                else:
                    times.append(_seconds(lambda: self.drawn(["a photo of a cat"])))
        return [statistics.median(times) for times in found]


def _seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _line(name: str, values: Sequence[float]) -> None:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    mean = statistics.mean(values)
    print(f"{name:<58} {mean:7.3f} ± {spread:.3f}  (n = {len(values)})", flush=True)


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sampling", type=int, default=20)
    parser.add_argument("--weights", default="", help="folder of a sandbox pipeline")
    parser.add_argument("--out", default="perfusion-study")
    study = Study(parser.parse_args())
    concepts = study.concepts()
    rows: dict[str, list[Judged]] = {}
    learned = {c.name: study.learned(c, 5) for c in concepts}
    for concept in concepts:
        made = learned[concept.name]
        rows.setdefault("category word", []).append(study.judged(concept, None))
        rows.setdefault("local lock", []).append(study.judged(concept, made))
        rows.setdefault("global lock", []).append(study.judged(concept, made, lock="global"))
        one = study.learned(concept, 1)
        rows.setdefault("one photo", []).append(study.judged(concept, one))
    for name, found in rows.items():
        for figure in ("identity", "category", "scene", "other"):
            _line(f"{name}: {figure}", [getattr(judged, figure) for judged in found])
    for bias in BIASES:
        found = [study.judged(c, learned[c.name], bias=bias) for c in concepts[:4]]
        _line(f"bias {bias:g}: identity", [judged.identity for judged in found])
        _line(f"bias {bias:g}: text", [judged.text for judged in found])
    gates = {"paper": {}, "normalised": {"normalised": True}, "floor": {"floor": 0.3}}
    for name, how in gates.items():
        ratios = [study.off_concept(learned[c.name], **how) for c in concepts[:4]]
        print(f"off the concept, {name}: another seed changes {min(ratios):.1f} times more")
    anchors = {c.name: study.vectors(c, study.photos(c, 8, seed=7)).mean(0) for c in concepts}
    pairs = [(a, b) for a, b in itertools.combinations(concepts, 2) if a.category != b.category]
    joint = [
        study.together((a, learned[a.name]), (b, learned[b.name]), anchors)
        for a, b in pairs[:: max(1, len(pairs) // 8)]
    ]
    _line("two merged: both present, each the right one", [right for right, _ in joint])
    _line("two merged: both present", [both for _, both in joint])
    ours, theirs = study.step_times(concepts[0])
    print(f"training step: {ours:.3f} s, word alone {theirs:.3f} s, ratio {ours / theirs:.2f}")
    none, single, double = study.picture_times([learned[c.name] for c in concepts[:2]])
    print(f"a picture: {none:.3f} s; with one concept {single / none:.3f}, two {double / none:.3f}")
    document = {name: [vars(judged) for judged in found] for name, found in rows.items()}
    (study.folder / "results.json").write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
