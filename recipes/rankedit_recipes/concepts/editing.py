"""`edit`: from requests to an edit of a pipeline."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.gating import detectors
from rankedit_recipes.concepts.methods.own import Method, settings_of
from rankedit_recipes.concepts.prompts import read_prompts
from rankedit_recipes.concepts.reading import Rows, read_empty, read_held, read_request
from rankedit_recipes.concepts.requests import Request, check_requests
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.concepts.shifting import read_shifts
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
        requests: what `erase`, `replace`, `hold` and `balance` return, in any order.
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
    settings, parts = settings_of(method), Parts(pipe, entrance=True)
    return _edited(parts, requests, settings, moment_of(pipe, statistics, progress=progress))


def moment_of(pipe: Pipeline, statistics: Statistics, *, progress: bool) -> rk.SecondMoment | None:
    """Statistics as they were given, or of the captions that were."""
    if statistics is None or isinstance(statistics, rk.SecondMoment):
        return statistics
    return second_moment(pipe, statistics, entrance=True, progress=progress)


def _edited(
    parts: Parts,
    requests: Sequence[Request],
    settings: Settings,
    moment: rk.SecondMoment | None,
) -> Edited:
    check_family(parts, settings)
    rows = {r.name: rows_of(parts, r, settings) for r in requests if r.kind != "hold"}
    return Edited.solve(
        requests, settings, rows, kept_of(parts, requests, settings, moment), text_digest(parts)
    )


def check_family(parts: Parts, settings: Settings) -> None:
    """Refuse first what no words would make possible; say what an edit does not reach.

    Raises:
        ConceptsError: the method changes what this denoiser does not have.
        PipelineError: nothing of the denoiser reads the text in ways that can be edited.

    Warns:
        RankeditWarning: a pooled vector says the word beside the tokens.
    """
    targets, denoiser = parts.targets, parts.denoiser.name
    if targets.entrances and settings.projections == "values":
        raise ConceptsError(
            f"edit: the method {settings.method!r} changes value projections alone, and "
            f"{denoiser} makes none of the text by itself: text and picture attend jointly; choose "
            "a method that changes both, such as 'covariance' or 'uce'."
        )
    if parts.pooled:
        warnings.warn(
            f"edit: {denoiser} is told each prompt in a pooled vector too, which is not edited and "
            "still says the word; look at pictures before you rely on the edit.",
            rk.RankeditWarning,
            stacklevel=4,
        )


def rows_of(parts: Parts, request: Request, settings: Settings) -> Rows:
    """What a request asks of which encodings.

    Raises:
        ConceptsError: it is to be balanced by amounts that were not measured.
    """
    if request.kind != "balance":
        return read_request(parts, request, settings)
    if not request.amounts:
        raise ConceptsError(
            f"edit: what balances {request.name!r} has to be measured on pictures; call "
            "concepts.debias(pipe, requests, judge), or give balance the amounts= that it found."
        )
    return read_shifts(parts, request, settings).rows(request.amounts)


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
    parts = Parts(pipe, entrance=True)
    edited.check(parts)
    rows: dict[str, Rows] = dict(edited.rows)
    rows |= {r.name: rows_of(parts, r, edited.settings) for r in requests if r.kind != "hold"}
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
    parts = Parts(pipe, entrance=True)
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
    metric = rk.Metric.from_moment(
        second_moment(pipe, free, entrance=True, progress=False), ridge=1e-3
    )
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
