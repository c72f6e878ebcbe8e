"""What the commands that measure do, without the command line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import rankedit as rk
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.command_line.memory import free_memory
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.shards import glob_of
from rankedit_recipes.language.commands.fitting import default_layers
from rankedit_recipes.language.commands.opening import Opened, open_texts
from rankedit_recipes.language.commands.tasks import SANDBOX_TEXTS, STATISTICS_SEED
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.evaluation import evaluate
from rankedit_recipes.language.evaluating.locality import Unrelated
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.model.bases import check_base
from rankedit_recipes.language.model.layers import Layers
from rankedit_recipes.language.model.running import embedding_device
from rankedit_recipes.language.requests import Case
from rankedit_recipes.language.showing.reporting import Report
from rankedit_recipes.language.sources import Source, source_of
from rankedit_recipes.language.statistics import collect_statistics

# Of the sandbox's corpus, for the locality: other texts than the statistics are from.
_UNRELATED_TEXTS = 500
_UNRELATED_SEED = 2


@dataclass(frozen=True)
class EvaluateTask:
    """What `evaluate` is to do.

    Attributes:
        cases: to evaluate on.
        edits: files of edits to attach.
        strength: of them.
        texts: files and folders of unrelated text, for the locality.
        generations: whether the model is to write, too.
        base: whether to evaluate the unedited model as well.
    """

    cases: Sequence[Case]
    edits: tuple[Path, ...] = ()
    strength: float = 1.0
    texts: tuple[Path, ...] = ()
    generations: bool = False
    base: bool = True


@dataclass(frozen=True)
class Sizes:
    """How much text statistics are collected on.

    Attributes:
        count: texts at most; 0 for all.
        batch: texts run together.
        length: tokens of a text; 0 for what the model takes.
        shard: which part of them; all if None.
    """

    count: int = 0
    batch: int = 16
    length: int = 0
    shard: rk.Shard | None = None


def evaluate_to(
    opened: Opened, task: EvaluateTask, report: Path | None, out: Path | None
) -> Iterator[str]:
    """Evaluate, print each number with its definition, and write what was asked for."""
    from rich.console import Console

    # Before edits are attached: it keeps what the unedited model predicts.
    unrelated = _unrelated(opened, task)
    # Read now: a wrong file is refused before the first evaluation.
    edits = _merged(opened, task.edits)
    found: dict[str, Scores] = {}
    if task.base or not edits:
        found["unedited"] = _evaluated(opened, task, unrelated)
    if edits:
        with rk.attach(opened.model, edits, strength=task.strength):
            found["edited"] = _evaluated(opened, task, unrelated)
    for name, scores in found.items():
        Console().print(scores.table(title=f"{name}, {counted(len(task.cases), 'case')}"))
    # Of the edited model, where there are edits.
    last = list(found.values())[-1]
    if out is not None:
        last.save(out)
        yield str(out)
    if report is not None:
        settings = {
            "model": opened.name,
            "edits": ", ".join(map(str, task.edits)) or "none",
            "strength": f"{task.strength:g}",
            "cases": str(len(task.cases)),
        }
        base = found.get("unedited")
        shown_scores = {n: s for n, s in found.items() if n != "unedited"} or found
        Report(
            title=f"{opened.name}: {counted(len(task.cases), 'case')}",
            scores=shown_scores,
            base=base if edits else None,
            settings=settings,
        ).save(report)
        yield str(report)


def _evaluated(opened: Opened, task: EvaluateTask, unrelated: Unrelated | None) -> Scores:
    return evaluate(
        opened.model, opened.tokenizer, task.cases, unrelated=unrelated,
        generations=task.generations,
    )  # fmt: skip


def _unrelated(opened: Opened, task: EvaluateTask) -> Unrelated | None:
    if not task.texts and opened.name != SANDBOX:
        return None
    subjects = {case.request.subject for case in task.cases}
    texts = itertools.islice(
        open_texts(task.texts, opened.name, seed=_UNRELATED_SEED), _UNRELATED_TEXTS
    )
    # A text with an edited subject in it is not unrelated.
    kept = [text for text in texts if not any(subject in text for subject in subjects)]
    return Unrelated(opened.model, opened.tokenizer, kept)


def _merged(opened: Opened, files: Sequence[Path]) -> dict[str, list[rk.Edit]]:
    """Edits of all files by projection, each file for this model."""
    found: dict[str, list[rk.Edit]] = {}
    for file in files:
        loaded = rk.load(file)
        check_base(opened.model, loaded)
        for name, item in loaded.items():
            if not isinstance(item, (rk.LowRank, rk.GatedEdit)):
                raise LanguageError(
                    f"evaluate: '{file}' must hold edits only, got {type(item).__name__} under "
                    f"{name!r}; give a file that `edit` wrote."
                )
            # A list, for several files may edit one projection.
            found.setdefault(name, []).append(item)
    return found


def stats_to(
    opened: Opened, source: Source, name: str, layers: Layers, sizes: Sizes, out: Path
) -> Iterator[str]:
    """Collect statistics, write them, and say whether the text sufficed."""
    if layers is None:
        free = free_memory(embedding_device(opened.model))
        layers, note = default_layers(opened.model, free, sizes.shard)
        yield from [note] if note else []
    found = collect_statistics(
        opened.model,
        opened.tokenizer,
        source,
        layers=layers,
        batch=sizes.batch,
        length=sizes.length or None,
        # Beside the result, where the same command finds it again, until the result is saved.
        checkpoint=rk.Checkpoint(out.with_suffix(".partial"), keep=True),
        corpus=name,
        shard=sizes.shard,
        count=sizes.count,
    )
    found.save(out, opened.model)
    found.remove_checkpoint()
    yield from found.describe().splitlines()
    yield f"{out}: {out.stat().st_size:,} bytes"
    if sizes.shard is not None:
        yield (
            f"shard {sizes.shard}: when all are there, rankedit stats merge "
            f"{glob_of(out, sizes.shard)} --out FILE"
        )


def stats_source(paths: Sequence[Path], model: str, sizes: Sizes, *, jsonl: bool) -> Source:
    """The texts that were named, or those of the sandbox; files are looked at, not read.

    Raises:
        LanguageError: nothing to read.
    """
    if paths or model != SANDBOX:
        return source_of(paths, jsonl=jsonl)
    texts = open_texts(paths, model, seed=STATISTICS_SEED)
    return source_of(list(itertools.islice(texts, sizes.count or SANDBOX_TEXTS)))
