"""What the commands that make pictures do, without the command line."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

import rankedit as rk
from rankedit.atomic import atomic_write
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.scoring import Scorer, Scores
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.perfusion.applying.apply import apply
from rankedit_recipes.perfusion.applying.explaining import explain
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.photos import load_photos
from rankedit_recipes.perfusion.learning.training import HISTORY
from rankedit_recipes.perfusion.prompts import VALIDATION_PROMPTS, filled, in_words
from rankedit_recipes.perfusion.showing.reporting import Report
from rankedit_recipes.perfusion.showing.sweeping import BIASES, TEMPERATURES, pareto_front, sweep

# What `use` takes from here: one heavy module for it to import.
__all__ = ["BIASES", "TEMPERATURES", "Sampling"]

# Only brackets tell a concept's word that was mistyped from any other word.
_BRACKETED = re.compile(r"<[^<>\s]+>")


def pictures_to(
    pipe: Pipeline,
    concepts: Sequence[Path],
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    sampling: Sampling,
    files: Sequence[Path],
) -> Iterator[Path]:
    """Pictures of prompts, for each prompt all seeds, written to files; gives these.

    Each file tells its prompt and seed in texts of PNG, `Description` and `Seed`.
    """
    asked = [(prompt, seed) for prompt in prompts for seed in seeds]
    with apply(pipe, list(concepts), **settings):
        made = generate(pipe, [p for p, _ in asked], [s for _, s in asked], sampling)
    for picture, file, (prompt, seed) in zip(made, files, asked, strict=True):
        # In the file, for its name has numbers only: prompts may be long and have any letter.
        told = PngInfo()
        told.add_itxt("Description", prompt)
        told.add_itxt("Seed", str(seed))
        with atomic_write(file) as temporary:
            picture.save(temporary, "PNG", pnginfo=told)
        yield file


def phrases_of(concepts: Sequence[Path]) -> dict[str, str]:
    """By the concepts' words what prompts are to say; no model is needed for that.

    Raises:
        PerfusionError: two have the same word.
    """
    phrases: dict[str, str] = {}
    for path in concepts:
        concept = Concept.load(path)
        if concept.trigger in phrases:
            raise PerfusionError(
                f"perfusion: two concepts have the word {concept.trigger!r}; give one another: "
                f"rankedit perfusion rename {path} --placeholder '<other>' --out NEW.safetensors."
            )
        phrases[concept.trigger] = concept.phrase
    return phrases


def check_prompts(prompts: Sequence[str], phrases: Mapping[str, str]) -> None:
    """Refuse words in angle brackets that no concept has; warn of prompts without any concept.

    Args:
        prompts: the prompts.
        phrases: by the concepts' words what prompts are to say.

    Raises:
        PerfusionError: names the word.
    """
    known = ", ".join(phrases)
    for prompt in prompts:
        strange = [word for word in _BRACKETED.findall(prompt) if word not in phrases]
        if strange:
            raise PerfusionError(
                f"perfusion: no concept has the word {strange[0]!r} of the prompt {prompt!r}, but "
                f"{known}; correct it, or give that concept's file too."
            )
        if not any(word in prompt for word in phrases):
            _warn(f"the prompt {prompt!r} has none of the concepts' words ({known}).")
        for word, phrase in phrases.items():
            # Before no category, an adjective's word stands for no kind of thing.
            if word in prompt and phrase not in prompt:
                _warn(f"{word} was learned before its category; say {phrase!r} in {prompt!r}.")


def _warn(message: str) -> None:
    warnings.warn(f"perfusion: {message}", rk.RankeditWarning, stacklevel=3)


def explain_to(
    pipe: Pipeline,
    concepts: Sequence[Path],
    prompt: str,
    settings: Mapping[str, Any],
    plot: Path | None,
) -> None:
    """Print the gates of a prompt, and draw them if a file is given."""
    with apply(pipe, list(concepts), **settings):
        explanation = explain(pipe, prompt)
    if plot is not None:
        with atomic_write(plot) as temporary:
            # The name aside does not tell the format.
            explanation.plot().savefig(temporary, format=plot.suffix.removeprefix("."))


@dataclass(frozen=True)
class SweepTask:
    """What the sweep's report is about."""

    concept: Path
    photos: Path
    biases: tuple[float, ...]
    temperatures: tuple[float, ...]
    seeds: Sequence[int]
    sampling: Sampling
    history: Mapping[str, Any]
    together: Path | None


def sweep_to(pipe: Pipeline, task: SweepTask, scorer: Scorer, out: Path) -> Iterator[str]:
    """Sweep, write the report, and give the lines of the front."""
    concept = Concept.load(task.concept)
    # As learning sees them: the middle square, in the size of the pictures.
    given = [p.square(Parts(pipe).denoiser.picture_size()).image for p in load_photos(task.photos)]
    points = sweep(
        pipe, concept, given, scorer, biases=task.biases, temperatures=task.temperatures,
        seeds=task.seeds, sampling=task.sampling,
    )  # fmt: skip
    prompts = filled(VALIDATION_PROMPTS, concept.phrase)
    with apply(pipe, concept):
        pictures = generate(pipe, prompts, range(len(prompts)), task.sampling)
        explanation = explain(pipe, prompts[1], show=False)
    Report(
        concept=concept,
        photos=given,
        pictures=dict(zip(prompts, pictures, strict=True)),
        losses=task.history.get("losses", ()),
        validations=task.history.get("validations", ()),
        explanation=explanation,
        points=points,
        together=_together(pipe, concept, task),
        settings={"seeds": str(list(task.seeds)), "sampling": str(task.sampling)},
    ).save(out)
    yield "front, from text first to concept first (bias, temperature: picture, text)"
    for point in pareto_front(points):
        scores = point.scores
        yield f"  {point.bias:g}, {point.temperature:g}: {scores.picture:.4f}, {scores.text:.4f}"
    yield str(out)


def history_of(run: Path | None) -> dict[str, Any]:
    """Losses and validations of a training, from its folder; nothing without one.

    Raises:
        PerfusionError: the folder is not that of a finished training.
    """
    if run is None:
        return {}
    file = run / HISTORY
    if not file.exists():
        raise PerfusionError(f"sweep: '{run}' has no {HISTORY}; give the folder of a training.")
    history: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return history


def _together(pipe: Pipeline, concept: Concept, task: SweepTask) -> dict[str, Image.Image]:
    if task.together is None:
        return {}
    other = Concept.load(task.together)
    first, second = concept.phrase, other.phrase
    templates = ("a photo of a {} next to a {}", "a photo of a {} and a {} on the beach")
    # Each prompt twice, under seeds of their own.
    prompts = [t.replace("{}", first, 1).replace("{}", second, 1) for t in templates] * 2
    with apply(pipe, [concept, other]):
        made = generate(pipe, prompts, range(len(prompts)), task.sampling)
    return {f"{p} (seed {i})": m for i, (p, m) in enumerate(zip(prompts, made, strict=True))}


def scores_of(
    pipe: Pipeline,
    concept: Path,
    photos: Path,
    scorer: Scorer,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    sampling: Sampling,
) -> Scores:
    """Scores of a concept's pictures over the validation prompts."""
    loaded = Concept.load(concept)
    given = [p.square(Parts(pipe).denoiser.picture_size()).image for p in load_photos(photos)]
    templates = [t for t in VALIDATION_PROMPTS for _ in seeds]
    chosen = [seed for _ in VALIDATION_PROMPTS for seed in seeds]
    with apply(pipe, loaded, **settings):
        made = generate(pipe, filled(templates, loaded.phrase), chosen, sampling)
    return scorer(made, in_words(templates, loaded.category), given)
