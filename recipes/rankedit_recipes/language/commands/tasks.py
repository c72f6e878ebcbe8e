"""What the commands that edit do, without the command line."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import rankedit as rk
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.outputs import folder_aside
from rankedit_recipes.language.commands.fitting import edit_plan
from rankedit_recipes.language.commands.opening import Opened, open_texts
from rankedit_recipes.language.commands.saving import check_fusable
from rankedit_recipes.language.editing import Engine, check_requests
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.locating import resolved
from rankedit_recipes.language.model.bases import base_marks
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.model.layers import TRACED, Layers, all_blocks, choose_blocks
from rankedit_recipes.language.model.surveying import explained
from rankedit_recipes.language.requests import Case
from rankedit_recipes.language.searching.contexts import prefixes_from
from rankedit_recipes.language.settings import Settings
from rankedit_recipes.language.statistics import (
    Statistics,
    collect_statistics,
    load_statistics,
)
from rankedit_recipes.language.streams.conflicts import shown
from rankedit_recipes.language.streams.folder import Folder
from rankedit_recipes.language.streams.stream import Stream

# Of the sandbox's corpus, for statistics that are collected on the way.
SANDBOX_TEXTS = 2000
STATISTICS_SEED = 1


@dataclass(frozen=True)
class EditTask:
    """What `edit` is to do.

    Attributes:
        cases: whose requests are edited.
        settings: the method.
        chosen: whether somebody asked for them; a stream that is there has its own else.
        statistics: their file, if there is one.
        layers: as `language.edit` takes them.
        stream: folder of the stream, if there is one.
        replace: whether requests may take the place of facts of the stream.
        texts: files of text, of which sentences are to stand before the prompts.
    """

    cases: Sequence[Case]
    settings: Settings
    statistics: Path | None
    layers: Layers
    stream: Path | None = None
    replace: bool = False
    chosen: bool = True
    texts: Sequence[Path] = ()


@dataclass(frozen=True)
class Outputs:
    """Where edits are written to; what is None is not written.

    Attributes:
        edits: file of edits.
        lora: file of a LoRA, in PEFT's layout.
        fused: folder of a whole model.
    """

    edits: Path | None = None
    lora: Path | None = None
    fused: Path | None = None


def parsed_layers(text: str) -> Layers:
    """Layers as they are named on the command line: numbers, or a pattern.

    Example:
        >>> parsed_layers(""), parsed_layers("3,4"), parsed_layers("*.mlp.c_proj")
        (None, [3, 4], '*.mlp.c_proj')
    """
    if not text.strip():
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        return text.strip()


def plan(opened: Opened, task: EditTask) -> Iterator[str]:
    """What an edit would do: method, projections, requests, sizes; writes nothing."""
    requests = [case.request for case in task.cases]
    check_requests(requests)
    task = _located(opened, task)
    blocks = all_blocks(opened.model, task.layers)
    chosen = choose_blocks(opened.model, blocks, task.layers, task.settings)
    yield f"{counted(len(requests), 'request')} by {task.settings.method}, such as:"
    for request in requests[:3]:
        yield f"  {request.text} → {request.target}"
    yield f"{type(opened.model).__name__}, {counted(len(blocks), 'block')}; edited are:"
    numbers = 0
    for block in chosen:
        view = rk.Projection(opened.model.get_submodule(block.down))
        numbers += view.in_features + view.out_features
        yield f"  {block.down}: {view.in_features} to {view.out_features}"
    yield from _why(opened, task, chosen)
    yield from edit_plan(opened.model, opened.tokenizer, chosen, task.settings, requests)
    # Files are in half precision.
    yield f"edits: about {2 * numbers * len(requests) / 1024:,.0f} KiB; nothing was written"


def edit_to(opened: Opened, task: EditTask, outputs: Outputs) -> Iterator[str]:
    """Edit, and write what was asked for."""
    task = _located(opened, task)
    if outputs.fused is not None:
        blocks = all_blocks(opened.model, task.layers)
        chosen = choose_blocks(opened.model, blocks, task.layers, task.settings)
        check_fusable(opened.model, [block.down for block in chosen])
    statistics = _statistics(opened, task.statistics, task.settings, task.layers)
    requests = [case.request for case in task.cases]
    prefixes = _prefixes(opened, task)
    if task.stream is not None:
        stream = Stream.open(
            task.stream, opened.model, opened.tokenizer, statistics=statistics,
            method=task.settings if task.chosen else None, layers=task.layers,
            prefixes=prefixes,
        )  # fmt: skip
        yield from _added(stream, task)
        edits, method = stream.edits(), stream.engine.settings.method
        yield f"{task.stream}: {counted(len(stream), 'fact')}"
    else:
        engine = Engine.build(
            opened.model, opened.tokenizer, task.settings, statistics, layers=task.layers,
            prefixes=prefixes,
        )  # fmt: skip
        yield from _why(opened, task, engine.chosen)
        edited = engine.edit(requests)
        edits, method = edited.edits, task.settings.method
        stopped = sum(reason != "steps" for reason in edited.found.reasons)
        yield (
            f"{counted(len(requests), 'fact')} by {task.settings.method}; objective "
            f"{float(edited.found.before.mean()):.2f} → {float(edited.found.after.mean()):.2f}, "
            f"{counted(stopped, 'search', 'searches')} ended early"
        )
    yield from _written(opened, edits, outputs, method)


def _why(opened: Opened, task: EditTask, chosen: Sequence[Block]) -> Iterator[str]:
    if task.layers is None and task.settings.depth is None:
        yield from explained(opened.model, chosen)


def _prefixes(opened: Opened, task: EditTask) -> list[str] | None:
    if not task.texts:
        return None
    texts = open_texts(task.texts, opened.name)
    settings = task.settings
    return prefixes_from(texts, opened.tokenizer, settings.contexts, seed=settings.seed)


def _located(opened: Opened, task: EditTask) -> EditTask:
    """The task with what a stream that is there has, or with the blocks that a trace finds.

    What somebody asked for stays: `Stream.open` refuses what differs.
    """
    manifest = None if task.stream is None else Folder(task.stream).head()
    if manifest is not None:
        layers: Layers = manifest.layers if task.layers in (None, TRACED) else task.layers
        settings = task.settings if task.chosen else manifest.settings
        return replace(task, layers=layers, settings=settings)
    if task.layers != TRACED:
        return task
    requests = [case.request for case in task.cases]
    check_requests(requests)
    layers = resolved(opened.model, opened.tokenizer, requests, TRACED, task.settings)
    return replace(task, layers=layers)


def _added(stream: Stream, task: EditTask) -> Iterator[str]:
    """Enter requests into a stream, conflicts first; gives lines about it."""
    requests = [case.request for case in task.cases]
    conflicts = stream.conflicts(requests)
    same = {conflict.second: conflict.first for conflict in conflicts if conflict.kind == "same"}
    parallel = [conflict for conflict in conflicts if conflict.kind == "parallel"]
    if parallel:
        yield f"{counted(len(parallel), 'pair')} of nearly parallel keys: {shown(parallel)}"
    if same and not task.replace:
        pairs = [c for c in conflicts if c.kind == "same"]
        raise LanguageError(
            f"edit: {counted(len(pairs), 'request')} about what the stream has already: "
            f"{shown(pairs)}; nothing was written. Add --replace to put them in its place, or "
            "undo the old ones."
        )
    for request in requests:
        if request.label in same:
            old = stream.replace(request)
            yield f"replaced: {old.text} → {old.target}, now {request.target}"
    rest = [request for request in requests if request.label not in same]
    with warnings.catch_warnings():
        # They were reported above.
        warnings.filterwarnings("ignore", "Stream.add: ", rk.RankeditWarning)
        added = stream.add(rest) if rest else []
    yield f"{len(added):,} added, {len(rest) - len(added):,} there already"


def undo_in(
    opened: Opened,
    folder: Path,
    statistics: Path | None,
    names: Sequence[str],
    last: int,
    outputs: Outputs,
    method: str = "",
) -> Iterator[str]:
    """Take facts out of a stream."""
    # Of a list, the last -1 are all but the first.
    if bool(names) == bool(last) or last < 0:
        raise LanguageError(
            "undo: give names of facts, or --last N with N at least 1; not both, not neither."
        )
    manifest = Folder(folder).head()
    if manifest is None:
        raise LanguageError(f"undo: '{folder}' is no stream; make one with edit --stream.")
    if outputs.fused is not None:
        check_fusable(opened.model, manifest.layers)
    given = _statistics(opened, statistics, manifest.settings, manifest.layers)
    stream = Stream.open(
        folder, opened.model, opened.tokenizer, statistics=given, method=method or None
    )
    chosen = list(names) or stream.names()[-last:]
    for request in stream.undo(*chosen):
        yield f"undone: {request.text} → {request.target}"
    yield f"{folder}: {counted(len(stream), 'fact')}"
    if len(stream):
        yield from _written(opened, stream.edits(), outputs, manifest.settings.method)
    elif any((outputs.edits, outputs.lora, outputs.fused)):
        yield "no facts are left, so that there are no edits to write"


def listed(folder: Path, subject: str) -> Iterator[str]:
    """What a stream is, and its facts."""
    manifest = Folder(folder).read()
    if manifest is None:
        raise LanguageError(f"list: '{folder}' is no stream; make one with edit --stream.")
    yield f"{folder}: {counted(len(manifest.requests), 'fact')} by {manifest.settings.method}"
    for name in manifest.layers:
        yield f"  in {name}"
    for request in manifest.requests:
        if subject.lower() in request.subject.lower():
            yield f"{request.label}\t{request.text} → {request.target}"


def _statistics(
    opened: Opened, file: Path | None, settings: Settings, layers: Layers
) -> Statistics | None:
    """Statistics of a file; for the sandbox, if there is none, collected now."""
    if file is not None:
        return load_statistics(file, opened.model, opened.tokenizer)
    if opened.name != SANDBOX or settings.cost == "identity":
        return None
    if layers is None:
        # Of the blocks that will be edited: all others would be collected for nothing.
        blocks = all_blocks(opened.model)
        layers = [b.index for b in choose_blocks(opened.model, blocks, None, settings)]
    texts = itertools.islice(open_texts([], SANDBOX, seed=STATISTICS_SEED), SANDBOX_TEXTS)
    return collect_statistics(
        opened.model, opened.tokenizer, texts, layers=layers, corpus=SANDBOX, batch=64
    )


def _written(
    opened: Opened, edits: dict[str, rk.LowRank], outputs: Outputs, method: str
) -> Iterator[str]:
    # As in `Edited.save`: half precision has little room for two factors of unlike size.
    balanced = {name: edit.balanced() for name, edit in edits.items()}
    rank = max(edit.rank for edit in edits.values())
    if outputs.edits is not None:
        texts = {"language": method, **base_marks(opened.model, balanced)}
        rk.save(balanced, outputs.edits, metadata=texts, model=opened.model, dtype=torch.float16)
        size = outputs.edits.stat().st_size
        yield f"{outputs.edits}: {size:,} bytes, {size / rank / 1024:.1f} KiB per fact"
    if outputs.lora is not None:
        rk.to_lora(balanced, outputs.lora, layout=rk.PEFT, model=opened.model)
        yield f"{outputs.lora}: LoRA of rank {rank}"
    if outputs.fused is not None:
        # From here on the model is another one than the files above are for.
        rk.fuse_(opened.model, balanced)
        with folder_aside(outputs.fused) as aside:
            opened.model.save_pretrained(aside)  # type: ignore[operator]
            opened.tokenizer.save_pretrained(aside)
        yield f"{outputs.fused}: the whole model, edits in its weights"
