"""What the commands do, without the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rankedit as rk
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.command_line.pairs import parsed_pairs
from rankedit_recipes.concepts.commands.opening import open_captions, open_pipeline
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.editing import add, check_family, edit, gated
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.methods.own import named
from rankedit_recipes.concepts.reading import templates_of
from rankedit_recipes.concepts.requests import Request, check_requests
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import second_moment
from rankedit_recipes.diffusion.text import Pipeline

# For the commands, which import this module alone.
__all__ = ["Edited"]

_TOML = {True: "true", False: "false"}
_METHOD = "covariance"


@dataclass(frozen=True)
class EditTask:
    """What `erase` and `replace` are to do.

    Attributes:
        requests: what is asked for.
        settings: the method; None for that of the edit that is gone on with.
        choice: the model.
        captions: their file, if there is one.
        onto: an edit that is gone on with.
        out: the file.
        gate: whether it acts on the concepts' tokens alone.
    """

    requests: Sequence[Request]
    settings: Settings
    choice: ModelChoice
    captions: Path | None
    onto: Path | None
    out: Path
    gate: bool = False


def settings_from(method: str | None, config: Path | None, pairs: Sequence[str]) -> Settings:
    """The method that was named, with a TOML file's settings and then what was typed on top.

    Raises:
        ConceptsError: an unknown method or setting, two methods, or a value out of range.
    """
    changes: dict[str, Any] = {}
    if config is not None:
        changes |= _toml(config)
    changes |= parsed_pairs(pairs, "concepts", ConceptsError)
    kept = str(changes.pop("method", method or _METHOD))
    if method and kept != method:
        raise ConceptsError(
            f"concepts: --method says {method!r}, and --config or --set say {kept!r}; leave one "
            "of them out."
        )
    base = named(kept)
    known = base.to_dict()
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ConceptsError(
            f"concepts: unknown settings {', '.join(unknown)}; known are {', '.join(known)}."
        )
    return replace(base, **changes)


def _toml(path: Path) -> Mapping[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConceptsError(f"concepts: --config '{path}' cannot be read: {error}.") from error


def as_toml(settings: Settings) -> str:
    """All settings as a TOML file."""
    return "\n".join(
        f"{n} = {_TOML[v] if isinstance(v, bool) else json.dumps(v)}"
        for n, v in settings.to_dict().items()
    )


def plan(task: EditTask) -> Iterator[str]:
    """Lines that say what would be done, and at what cost; no text is encoded."""
    earlier = [] if task.onto is None else list(Edited.load(task.onto).requests)
    every = [*earlier, *task.requests]
    check_requests(every)
    parts = Parts(open_pipeline(task.choice), entrance=True)
    targets, settings = parts.targets, task.settings
    check_family(parts, settings)
    names = targets.values if settings.projections == "values" else targets.names
    prompts = sum(
        len(r.words) * len(templates_of(parts, r, settings)) * (1 + _beside(r, settings))
        for r in every
    )
    yield from map(str, every)
    yield f"method {settings.method}: {counted(len(names), 'projection')} of {parts.denoiser.name}"
    yield f"encodings {targets.width} wide, {counted(prompts, 'prompt')} to encode"
    if settings.cost == "covariance" or task.gate:
        captions = len(open_captions(task.captions, task.choice.name))
        yield f"statistics: {counted(captions, 'caption')} to encode"
    if settings.rank:
        changed = sum(request.kind != "hold" for request in every)
        size = 2 * 8 * settings.rank * changed * targets.width
        yield f"the map takes at most {size:,} bytes, beside 16 for each number of a key"
    yield f"'{task.out}' would be written; nothing was written"


def _beside(request: Request, settings: Settings) -> int:
    """Prompts beside each one of a concept: what it becomes, or its attributes."""
    if request.kind == "hold":
        return 0
    if request.kind == "erase" and not request.to:
        return max(1, settings.neighbours)
    return max(1, len(request.shares))


def edit_to(task: EditTask) -> Iterator[str]:
    """Make an edit and write it."""
    pipe = open_pipeline(task.choice)
    moment = moment_for(pipe, task.settings, task.captions, task.choice.name)
    if task.onto is None:
        edited = edit(pipe, task.requests, method=task.settings, statistics=moment)
    else:
        edited = add(pipe, Edited.load(task.onto, statistics=moment), task.requests)
    if task.gate:
        edited = gated(pipe, edited, open_captions(task.captions, task.choice.name))
    edited.save(task.out)
    yield from written(edited, task.out)


def moment_for(
    pipe: Pipeline, settings: Settings, captions: Path | None, model: str
) -> rk.SecondMoment | None:
    """The statistics that a method needs; None for one that needs none."""
    if settings.cost != "covariance":
        return None
    return second_moment(pipe, open_captions(captions, model), entrance=True)


def written(edited: Edited, path: Path) -> Iterator[str]:
    """Lines that say what a file of an edit holds."""
    yield f"{path}: {path.stat().st_size:,} bytes, method {edited.settings.method}"
    yield from (f"  {request}" for request in edited.requests)
    if edited.gate is not None:
        found = zip(edited.gate.names, edited.gate.found.tolist(), strict=True)
        yield f"  gate: {', '.join(f'{share:.0%} of {name}' for name, share in found)} found"
    report = edited.map.report
    if report is not None:
        yield f"  encodings still lack {report.residual:.1%} of what they lacked"


def plan_undo(
    file: Path, names: Sequence[str], choice: ModelChoice, captions: Path | None, out: Path
) -> Iterator[str]:
    """Lines that say what `undo_to` would leave, and at what cost; no model is loaded."""
    edited = Edited.load(file)
    yield from (f"stays: {request}" for request in edited.left(*names))
    if edited.settings.cost == "covariance":
        count = len(open_captions(captions, choice.name))
        yield f"statistics: {counted(count, 'caption')} to encode"
    gone = sum(rows.keys.nbytes + rows.guides.nbytes for n, rows in edited.rows.items()
               if n in names)  # fmt: skip
    yield f"'{out}' would be written, {gone:,} bytes smaller; nothing was written"


def undo_to(
    file: Path, names: Sequence[str], choice: ModelChoice, captions: Path | None, out: Path
) -> Iterator[str]:
    """Write an edit as if some of its requests had never been asked for."""
    edited = Edited.load(file)
    if edited.settings.cost == "covariance":
        pipe = open_pipeline(choice)
        moment = moment_for(pipe, edited.settings, captions, choice.name)
        edited = Edited.load(file, statistics=moment)
    left = edited.without(*names)
    left.save(out)
    yield from written(left, out)


def plan_export(file: Path, choice: ModelChoice, lora: Path) -> Iterator[str]:
    """Lines that say what `export_to` would write, and of what size."""
    edited = Edited.load(file)
    layers = edited.layers(Parts(open_pipeline(choice), entrance=True)).values()
    wide = [rk.Projection(layer) for layer in layers]
    size = 4 * edited.map.rank * sum(one.in_features + one.out_features for one in wide)
    yield f"{counted(len(wide), 'projection')}, rank {edited.map.rank}, about {size:,} bytes"
    yield f"'{lora}' would be written; nothing was written"


def export_to(file: Path, choice: ModelChoice, lora: Path, layout: str) -> Iterator[str]:
    """Write an edit as a LoRA."""
    edited = Edited.load(file)
    edited.export_lora(open_pipeline(choice), lora, layout=layout)
    yield f"{lora}: the edit itself, of rank {edited.map.rank}; strength 1 is all of it"
