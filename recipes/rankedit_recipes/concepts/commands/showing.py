"""What the commands do that show what an edit does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rankedit.atomic import atomic_write
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.command_line.errors import CommandError
from rankedit_recipes.concepts.commands.opening import open_clip, open_pipeline
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.judging import ClipPresence, SandboxPresence, check_word
from rankedit_recipes.concepts.probing import TextualInversion, probe
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.diffusion.pages import gallery, page, section, table

# For the commands, which import this module alone.
__all__ = ["Sampling"]


@dataclass(frozen=True)
class ShowTask:
    """An edit that is shown.

    Attributes:
        file: of the edit.
        choice: the model.
        strength: of the edit.
        sampling: how pictures are made.
    """

    file: Path
    choice: ModelChoice
    strength: float
    sampling: Sampling


@dataclass(frozen=True)
class ProbeTask:
    """What is asked of the red team.

    Attributes:
        implicit: descriptions by concept.
        neighbours: how many near words are asked for.
        judge: a CLIP model; empty for the sandbox's judge.
        among: other words that CLIP may see in a picture.
        pictures: of each prompt.
        out: the report.
        steps: of textual inversion, at which a concept that is taught anew is asked for.
        run: folder of what learning makes, to go on from; None for none.
    """

    implicit: Mapping[str, Sequence[str]]
    neighbours: int
    judge: str
    among: Sequence[str]
    pictures: int
    out: Path
    steps: Sequence[int] = ()
    run: Path | None = None


def plan_pictures(
    task: ShowTask, prompts: Sequence[str], seeds: Sequence[int], out: Path
) -> Iterator[str]:
    """Lines that say what `pictures_to` would do; no model is loaded."""
    yield from map(str, Edited.load(task.file).requests)
    yield _cost(2 * len(prompts) * len(seeds), task.sampling)
    yield f"'{out}' would have them and report.html; nothing was written"


def pictures_to(
    task: ShowTask, prompts: Sequence[str], seeds: Sequence[int],
    files: Sequence[tuple[Path, Path]], report: Path,
) -> Iterator[str]:  # fmt: skip
    """Pictures of prompts without the edit and with it, of the same noise, and their report."""
    edited = Edited.load(task.file)
    pipe = open_pipeline(task.choice)
    asked = [(prompt, seed) for prompt in prompts for seed in seeds]
    if len(files) != len(asked):
        raise CommandError(f"evaluate: {len(files)} names for {len(asked)} pictures.")
    texts, noise = [prompt for prompt, _ in asked], [seed for _, seed in asked]
    before = generate(pipe, texts, noise, task.sampling)
    with edited.attach(pipe) as attachment:
        if task.strength != 1.0:
            attachment.set(strength=task.strength)
        after = generate(pipe, texts, noise, task.sampling)
    changes = [_change(old, new) for old, new in zip(before, after, strict=True)]
    for old, new, (one, other), text, change in zip(
        before, after, files, texts, changes, strict=True
    ):
        old.save(one)
        new.save(other)
        yield f"{other}: {text!r} changed by {change:.3f}"
    pairs = list(zip(before, after, changes, strict=True))
    with atomic_write(report) as temporary:
        temporary.write_text(_report(edited, task, asked, pairs), encoding="utf-8")
    yield f"{report}: both side by side"


Pair = tuple[Image.Image, Image.Image, float]


def _report(
    edited: Edited, task: ShowTask, asked: Sequence[tuple[str, int]], pairs: Sequence[Pair]
) -> str:
    """The page: what the edit is, and each prompt before and after; what is kept comes last."""
    words = {w: r for r in edited.requests if r.kind != "hold" for w in r.words}
    shown: dict[bool, dict[str, list[tuple[int, Pair]]]] = {True: {}, False: {}}
    for (prompt, seed), pair in zip(asked, pairs, strict=True):
        says = any(f" {word} " in f" {prompt} " for word in words)
        shown[says].setdefault(prompt, []).append((seed, pair))
    titles = {True: "What was edited", False: "What was kept"}
    parts = [section("The edit", table(_facts(edited, task)))]
    for says, prompts in shown.items():
        rows = {
            prompt: f"pixels changed by {sum(p[2] for _, p in own) / len(own):.3f} in the mean"
            for prompt, own in prompts.items()
        }
        parts.append(section(titles[says], table(rows) if rows else ""))
        for prompt, own in prompts.items():
            pictures = {
                f"seed {seed}, {when}": picture
                for seed, (old, new, _) in own
                for when, picture in (("before", old), ("after", new))
            }
            parts.append(section(prompt, gallery(pictures)))
    return page(f"Edited: {', '.join(edited.names())}", parts)


def _facts(edited: Edited, task: ShowTask) -> dict[str, str]:
    size = f"{task.file.stat().st_size:,} bytes, a map of rank {edited.map.rank}"
    facts = {request.name: str(request) for request in edited.requests}
    more = {"gate": "on its concepts' tokens alone"} if edited.gate is not None else {}
    return {**facts, "method": edited.settings.method, "file": size, **more,
            "strength": f"{task.strength:g}"}  # fmt: skip


def plan_probe(task: ShowTask, asked: ProbeTask) -> Iterator[str]:
    """Lines that say what `probe_to` would do; no model is loaded."""
    edited = Edited.load(task.file)
    yield from map(str, edited.requests)
    described = sum(len(texts) for texts in asked.implicit.values())
    yield (
        f"{counted(asked.pictures, 'picture')} of each prompt, without the edit and with it: "
        f"concepts in sentences, {counted(described, 'description')}, "
        f"{counted(asked.neighbours, 'near word')} of each, and what is held"
    )
    if asked.steps:
        at = ", ".join(map(str, asked.steps))
        yield f"textual inversion of each concept, looked at after {at} steps"
    yield f"'{asked.out}' would be written; nothing was written"


def probe_to(task: ShowTask, asked: ProbeTask) -> Iterator[str]:
    """Ask for an edit's concepts in other ways, and write the report."""
    edited = Edited.load(task.file)
    sandbox = not asked.judge
    for request in edited.requests if sandbox else ():
        # Before the model is loaded, and pictures are made for nothing.
        for word in request.words if request.kind == "hold" else request.words[:1]:
            check_word(word)
    # What words become and what is held are other things that a picture may show.
    known = [word for r in edited.requests for word in (*r.words[:1], *r.to)]
    among = list(dict.fromkeys([*known, *asked.among]))
    if not sandbox and len(among) < 2:
        raise CommandError(
            f"probe: CLIP tells {among[0]!r} from other words that a picture may show; give "
            "--among dog, and more."
        )
    judge = SandboxPresence() if sandbox else ClipPresence(open_clip(asked.judge), among)
    found = probe(
        open_pipeline(task.choice), edited, judge, implicit=asked.implicit,
        neighbours=asked.neighbours, pictures=asked.pictures, sampling=task.sampling,
        learners=[TextualInversion()] if asked.steps else (), steps=asked.steps, run=asked.run,
        progress=True,
    )  # fmt: skip
    found.save(asked.out)
    for (concept, kind), (before, after) in found.shares().items():
        yield f"{concept}, {kind}: {before:.0%} before, {after:.0%} after"
    for curve in found.curves:
        yield f"{curve.concept}, {curve.learner}: {curve}"
    yield f"{asked.out}: pictures before and after"


def _cost(pictures: int, sampling: Sampling) -> str:
    return f"{counted(pictures, 'picture')} of {counted(sampling.steps, 'step')} to make"


def _change(old: Image.Image, new: Image.Image) -> float:
    first, second = (np.asarray(p.convert("RGB"), dtype=float) / 255 for p in (old, new))
    return float(np.abs(first - second).mean())
