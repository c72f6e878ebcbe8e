"""`edit`: from requests to an edit of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.gating import detectors
from rankedit_recipes.concepts.methods.own import Method, settings_of
from rankedit_recipes.concepts.reading import (
    Rows,
    read_empty,
    read_held,
    read_prompts,
    read_request,
)
from rankedit_recipes.concepts.requests import Request, check_requests
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.concepts.solving import Kept
from rankedit_recipes.diffusion.captions import listed_texts
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import second_moment, text_digest
from rankedit_recipes.diffusion.text import Pipeline

Statistics = rk.SecondMoment | Sequence[str] | None


def edit(
    pipe: Pipeline,
    requests: Sequence[Request],
    *,
    method: Method = "covariance",
    statistics: Statistics = None,
    progress: bool = True,
) -> Edited:
    """Erase, replace and hold concepts of a text-to-image pipeline, all together.

    Every projection W that reads the text becomes `W (I + M)`, with one M `[in, in]` that makes the
    encodings of each concept act like those of what it is to become; see `Settings` for the
    problem that M solves. The pipeline is not changed: `attach` or `fuse` the result.

    Args:
        pipe: a text-to-image pipeline of diffusers, unedited.
        requests: what `erase`, `replace` and `hold` return; their order makes no difference.
        method: a name in `METHODS`, settings, or a function `(layer, keys, values, metric) ->
            LowRank`; see `method_of`.
        statistics: captions of the kind that the model is used with, or their second moment (see
            `second_moment`); needed by methods whose cost is the covariance.
        progress: show it.

    Raises:
        ConceptsError: requests that contradict each other, or words that the model does not know.
        PipelineError: the pipeline's projections do not read the text alone; says why.

    Source:
        The methods' own modules name their papers.
    """
    check_requests(requests)
    settings, parts = settings_of(method), Parts(pipe)
    moment = statistics
    if moment is not None and not isinstance(moment, rk.SecondMoment):
        moment = second_moment(pipe, moment, progress=progress)
    return _edited(parts, requests, settings, moment)


def _edited(
    parts: Parts,
    requests: Sequence[Request],
    settings: Settings,
    moment: rk.SecondMoment | None,
) -> Edited:
    # First, for its refusal: of a family that cannot be worked with, not of a word.
    _ = parts.targets
    rows = {r.name: read_request(parts, r, settings) for r in requests if r.kind != "hold"}
    return Edited.solve(
        requests, settings, rows, kept_of(parts, requests, settings, moment), text_digest(parts)
    )


def add(pipe: Pipeline, edited: Edited, requests: Sequence[Request]) -> Edited:
    """An edit with further requests, as if all had been asked for together.

    Args:
        pipe: the pipeline, unedited.
        edited: the edit; one that was loaded needs its statistics.
        requests: what is new.
    """
    if edited.gate is not None:
        raise ConceptsError(
            "add: the edit has a gate, which knows its own concepts alone; add to the edit without "
            "one, and call gated again."
        )
    every = [*edited.requests, *requests]
    check_requests(every)
    parts = Parts(pipe)
    edited.check(parts)
    rows: dict[str, Rows] = dict(edited.rows)
    rows |= {r.name: read_request(parts, r, edited.settings) for r in requests if r.kind != "hold"}
    kept = kept_of(parts, every, edited.settings, edited.kept.moment)
    return Edited.solve(every, edited.settings, rows, kept, edited.texts)


def gated(pipe: Pipeline, edited: Edited, captions: Sequence[str]) -> Edited:
    """The same edit, acting on its concepts' tokens alone; every other token stays bit for bit.

    Args:
        pipe: the pipeline, unedited.
        edited: the edit.
        captions: texts of the kind that are prompts; those that say a concept's word are left out.

    Returns:
        An edit that can be attached, with a strength, and saved; it has no form as a weight.

    Raises:
        ConceptsError: no caption is left, or a concept's tokens cannot be told from others.
    """
    parts = Parts(pipe)
    edited.check(parts)
    said = {word for r in edited.requests if r.kind != "hold" for word in r.words}
    captions = listed_texts("gated", "captions", captions)
    # Whole words, whatever mark or capital is beside them.
    words = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in said), re.IGNORECASE)
    free = [caption for caption in captions if not words.search(caption)]
    if not free:
        raise ConceptsError(
            "gated: captions without the edit's concepts are needed, to know what else there is; "
            f"all {len(captions)} have one."
        )
    others = torch.cat([prompt.vectors for prompt in read_prompts(parts, free, [""] * len(free))])
    metric = rk.Metric.from_moment(second_moment(pipe, free, progress=False), ridge=1e-3)
    names = edited.names()
    rows = {name: edited.rows[name] for name in names}
    return replace(edited, gate=detectors(rows, others, metric))


def kept_of(
    parts: Parts, requests: Sequence[Request], settings: Settings, moment: rk.SecondMoment | None
) -> Kept:
    """What an edit is measured against."""
    held = [read_held(parts, r, settings) for r in requests if r.kind == "hold"]
    return Kept(
        torch.cat(held) if held else None,
        read_empty(parts) if settings.anchored else None,
        moment,
        gram_of(parts) if settings.rounds else None,
    )


def gram_of(parts: Parts) -> Tensor:
    """`Σ W_iᵀ W_i [in, in]` of all projections, float64, by running them on the unit vectors."""
    unit = torch.eye(parts.targets.width)
    total = torch.zeros(len(unit), len(unit), dtype=torch.float64)
    for layer in parts.projections.values():
        given = rk.linear_output(layer, unit).detach().cpu().double()
        total += given @ given.T
    return total
