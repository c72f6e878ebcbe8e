"""The engine: the one map of encodings that all requests ask for together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.reading import Rows
from rankedit_recipes.concepts.settings import Settings


@dataclass(frozen=True, eq=False)
class Kept:
    """What an edit is measured against.

    Attributes:
        held: `[h, in]`, keys of the held concepts; None without.
        empty: `[e, in]`, of the empty prompt, for methods that hold it; None for others.
        moment: of captions, for methods that need it.
        gram: `Σ W_iᵀ W_i [in, in]` of the edited projections, for methods that look for what
            brings a concept back.
    """

    held: Tensor | None = None
    empty: Tensor | None = None
    moment: rk.SecondMoment | None = None
    gram: Tensor | None = None


def solved(rows: Sequence[Rows], kept: Kept, settings: Settings) -> rk.LowRank:
    """The map M `[in, in]` of all requests together; every projection W becomes `W (I + M)`.

    Args:
        rows: of each request.
        kept: what is held, and statistics.
        settings: the method.
    """
    width = rows[0].keys.shape[1]
    if settings.influence and kept.held is not None:
        alone = _once(rows, settings, rk.Metric.identity(width, settings.weight), None)
        kept = replace(kept, held=influenced(alone, kept.held))
    metric = metric_of(settings, kept, width)
    held = _held(kept, settings)
    edit = _once(rows, settings, metric, held)
    for _ in range(settings.rounds):
        edit = _followed(edit, _round(edit, rows, kept, settings, metric))
    # For each concept: with one limit for all, the hundredth would be paid for by the first.
    most = settings.rank * len(rows)
    if most and edit.rank > most:
        report = edit.report
        edit = replace(edit.compress(most, metric), report=report)
    return edit


def metric_of(settings: Settings, kept: Kept, width: int) -> rk.Metric:
    """What a change of the encodings costs.

    Raises:
        ConceptsError: the method needs statistics, and there are none.
    """
    if settings.cost == "covariance":
        if kept.moment is None:
            raise ConceptsError(
                f"edit: the method {settings.method!r} measures a change on captions; give "
                "statistics=, a list of captions or what perfusion.second_moment returned."
            )
        if kept.moment.dim != width:
            raise ConceptsError(
                f"edit: the statistics are of encodings {kept.moment.dim} wide, the pipeline's are "
                f"{width} wide; collect them with this pipeline."
            )
        metric = rk.Metric.from_moment(kept.moment, ridge=settings.ridge).scaled(settings.weight)
    elif settings.cost == "null space" and kept.held is not None:
        matrix = kept.held.T @ kept.held
        metric = rk.Metric.null_space(matrix, relative=settings.cut, scale=settings.weight)
    else:
        metric = rk.Metric.identity(width, settings.weight)
    if settings.keep == "soft" and settings.cost != "null space" and kept.held is not None:
        metric = metric.extended(kept.held, settings.preserve)
    return metric


def _once(
    rows: Sequence[Rows], settings: Settings, metric: rk.Metric, held: Tensor | None
) -> rk.LowRank:
    keys, guides = (torch.cat([getattr(r, n) for r in rows]) for n in ("keys", "guides"))
    softness: float | Tensor = settings.softness
    if settings.balanced:
        counts = torch.cat([torch.full((len(r.keys),), float(len(r.keys))) for r in rows])
        softness = counts.double() * settings.softness
    if len(keys) <= keys.shape[1] or not settings.reducible:
        return settings.solve(_identity, keys, guides, metric, softness=softness, held=held)
    fewer, goals = reduced(keys, guides, softness)
    # Scaled so that the most unusual of them is as unusual as the most unusual key: the solver
    # warns of those that lie outside of the statistics.
    most, own = (float(metric.energy(rows).max()) for rows in (keys, fewer))
    scale = (most / own) ** 0.5 if own else 1.0
    edit = settings.solve(
        _identity, scale * fewer, scale * goals, metric, softness=scale**2, held=held
    )
    return replace(edit, report=_reported(edit, keys, guides))


def reduced(keys: Tensor, guides: Tensor, softness: float | Tensor) -> tuple[Tensor, Tensor]:
    """As many keys as they are wide, and guides, whose edit under softness 1 is the same.

    With `S^-½ K = Q T`, `‖S^-½ (K Mᵀ − R)‖² = ‖T Mᵀ − Qᵀ S^-½ R‖²` and what no M changes. A
    hundred concepts in sixteen contexts have more keys than a dual system could hold; and by
    orthogonal steps alone the order of keys changes a map by 1e-11, by a system of so many nearly
    dependent keys by 1e-8.
    """
    weight = torch.as_tensor(softness).double().reshape(-1, 1).rsqrt()
    q, fewer = torch.linalg.qr(keys * weight)
    return fewer, fewer + q.T @ ((guides - keys) * weight)


def _reported(edit: rk.LowRank, keys: Tensor, guides: Tensor) -> rk.EditReport | None:
    if edit.report is None:
        return None
    wanted = guides - keys
    left = wanted - keys @ edit.down.T @ edit.up.T
    share = float(left.norm() / wanted.norm()) if float(wanted.norm()) else 0.0
    return replace(edit.report, residual=share)


def _identity(encodings: Tensor) -> Tensor:
    return encodings


def _held(kept: Kept, settings: Settings) -> Tensor | None:
    """The keys that must not move at all."""
    hard = settings.keep == "hard" and settings.cost != "null space"
    known = [rows for rows in (kept.empty, kept.held if hard else None) if rows is not None]
    return torch.cat(known) if known else None


def influenced(edit: rk.LowRank, held: Tensor) -> Tensor:
    """Those of the held keys that an edit moves by at least the mean (SPEED's filter)."""
    moved = (held @ edit.down.T @ edit.up.T).norm(dim=1)
    return held[moved >= moved.mean()]


def _round(
    edit: rk.LowRank, rows: Sequence[Rows], kept: Kept, settings: Settings, metric: rk.Metric
) -> rk.LowRank:
    """What is to follow M, so that the encodings that undo it in `W' = W (I + M)` go too."""
    if kept.gram is None:
        raise ConceptsError(
            f"edit: the method {settings.method!r} looks for what brings a concept back in the "
            "projections themselves; call it with the pipeline."
        )
    width = edit.in_features
    whole = torch.eye(width, dtype=torch.float64) + edit.delta()
    # c' = (λI + Σ W'ᵀW')⁻¹ Σ W'ᵀW c, as columns; rows here.
    system = whole.T @ kept.gram @ whole
    system.diagonal().add_(settings.pullback)
    back = torch.linalg.solve(system, whole.T @ kept.gram)
    again = [replace(r, keys=r.keys @ back.T) for r in rows]
    return _once(again, settings, metric, None)


def _followed(first: rk.LowRank, second: rk.LowRank) -> rk.LowRank:
    """`(I + M)(I + N) − I`: the projections are `W (I + M)` when N is solved for."""
    through = second.up + first.up @ (first.down @ second.up)
    return rk.LowRank(
        torch.cat([first.up, through], 1), torch.cat([first.down, second.down]), second.report
    )
