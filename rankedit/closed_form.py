"""The one closed form: the cheapest change of a projection that gives keys their values.

    minimise  ‖ΔW‖²_M + Σ_j s_j⁻¹ ‖k_j ΔWᵀ − r_j‖²      with  R = V − K Wᵀ,  A = M⁻¹
    ⇒         ΔW = Rᵀ (K A Kᵀ + S)⁻¹ K A                 (dual: n × n, exact for S = 0)
            =  Rᵀ S⁻¹ K (M + Kᵀ S⁻¹ K)⁻¹                 (primal: in × in, needs S > 0)

ROME, MEMIT, EMMET, AlphaEdit, UCE, TIME, LEACE and directional removal are this problem under
different metrics; see the concepts page of the documentation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rankedit.edits import EditReport, LowRank
from rankedit.errors import RankeditWarning, ShapeError, SolveError
from rankedit.gram import GramSystem
from rankedit.linear_outputs import linear_output, linear_output_transposed
from rankedit.metric import Metric
from rankedit.products import product, transposed_product
from rankedit.shapes import Keys, Values, check_kind, check_rows, checked_weights
from rankedit.two_sided import TwoSided, beside, checked_value_metric

# Beyond this the float64 factorisation of the metric has no correct digit left.
_WORST_CONDITION = 1e15

# A key this many times as unusual as the data's average lies practically outside of what was seen.
_UNUSUAL = 1e3

# Share of a key's squared length inside the metric's subspace: refused below, warned about below.
_NO_REACH, _LITTLE_REACH = 1e-10, 1e-3


@dataclass(frozen=True)
class _Problem:
    """Constraint rows on one device: K, R, S, with held keys as rows with R = S = 0.

    R and S in float64; K too where keys are held, else as given: it may be large.
    """

    metric: Metric
    keys: Keys
    lacking: Values
    softness: Tensor
    names: tuple[str, ...]
    value_metric: Metric | None = None

    @property
    def dual(self) -> bool:
        # The primal form divides by the softness; else the smaller of the two systems is solved.
        return bool((self.softness == 0).any()) or len(self.keys) <= self.metric.rank


def solve_edit(
    layer: object,
    keys: Keys,
    values: Values,
    metric: Metric,
    *,
    softness: float | Tensor = 0.0,
    hold: Keys | None = None,
    side: Literal["input", "output"] = "input",
    value_metric: Metric | None = None,
) -> LowRank:
    """The cheapest `ΔW` under the metric with which the layer gives each key its value.

    Args:
        layer: a module, a weight `[out, in]`, or any function that applies the linear map. Only
            run, never read; what it gives now, attached edits included, is what is corrected.
        keys: `[n, in]`, inputs whose output is to change.
        values: `[n, out]`, what they are to give, without the layer's bias.
        metric: what a change costs; of width `in`.
        softness: 0 for an equality (ROME, EMMET); s > 0 weighs each key's squared error with 1/s
            (MEMIT: 1). In the units of `k A kᵀ`. One number, or `[n]`, one for each key.
        hold: `[h, in]`, keys whose output must not move at all.
        side: `"output"` solves the same problem for `Wᵀ`: keys `[n, out]` are directions of the
            output, values `[n, in]` what `keys @ W` is to become, and the metric has width `out`.
        value_metric: H `[out, out]`, what the entries of a change of the values cost; the cost is
            then `tr(H ΔW M ΔWᵀ)`. H drops out of equalities. Along each of its eigenvectors,
            `H u_i = h_i u_i`, a soft key has the softness `h_i s_j`. A restricted one confines what
            the edit adds to its subspace. In the units of the values' inverse squares.

    **Cross-covariances.** With labels z, keys `Σ_zx = E[(z − E z)ᵀ(x − E x)] [n, in]` (see
    `rankedit.CrossCovariance`), values T `[n, out]` and `Metric.from_moment(..., centred=True)`,
    the outputs' cross-covariance `Σ_zy` becomes T, and no other edit that achieves this changes
    the outputs less, about their mean: T = 0 is LEACE. The mean itself moves by `E[x] ΔWᵀ`, unless
    `hold` has `E[x]`, or the layer's bias takes it back.

    Returns:
        The edit in float64, with a report of residual, drift (under the metric alone) and
        condition. Its rank is the number of keys and held keys (at most the widths).

    Raises:
        ShapeError: shapes that do not match, or negative softness.
        SolveError: keys outside the metric's subspace, dependent keys with contradicting values, or
            equalities that ask for something outside the value metric's subspace.

    Source:
        Meng et al., "Locating and editing factual associations in GPT", arXiv 2202.05262, equation
        2, and "Mass-editing memory in a transformer", arXiv 2210.07229, equation 14; the common
        form and the equality limit of the dual are derived on the concepts page. Two-sided cost:
        Ikram et al., CrispEdit, arXiv 2602.15823. Cross-covariances: Belrose et al., LEACE, arXiv
        2306.03819, and Gaintseva et al., LEACE-Switch, arXiv 2605.05220.

    Example:
        >>> weight, metric = torch.eye(2), Metric.identity(2)
        >>> keys, values = torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 6.0]])
        >>> solve_edit(weight, keys, values, metric).delta().tolist()
        [[4.0, 0.0], [6.0, 0.0]]
    """
    if side not in ("input", "output"):
        raise ShapeError(f"solve_edit: side must be 'input' or 'output', got {side!r}.")
    check_kind("solve_edit", "metric", metric, Metric)
    check_rows("solve_edit", "keys", keys, metric.dim, of="metric")
    lacking = _lacking(layer, keys, values, side)
    edit = solve_lacking(
        keys, lacking, metric, softness=softness, hold=hold, value_metric=value_metric
    )
    return edit if side == "input" else LowRank(edit.down.T, edit.up.T, edit.report)


def _lacking(layer: object, keys: Keys, values: Values, side: str) -> Values:
    current = (linear_output if side == "input" else linear_output_transposed)(layer, keys)
    check_rows("solve_edit", "values", values, current.shape[1], len(keys), per="keys")
    check_rows("solve_edit", "the layer's output at the keys", current)
    # Subtracted in float64: value and output often agree to many digits.
    lacking = values.detach().to(keys.device).double() - current.to(keys.device).double()
    return lacking.detach()


def solve_lacking(
    keys: Keys,
    lacking: Values,
    metric: Metric,
    *,
    softness: float | Tensor = 0.0,
    hold: Keys | None = None,
    value_metric: Metric | None = None,
) -> LowRank:
    """`solve_edit` for what the keys lack, `R = V − K Wᵀ`, when that is known already."""
    metric = metric.guarded  # attention sinks stay where they are, though no statistics show them
    posed = _posed(keys, lacking, metric, softness, hold)
    posed = replace(posed, value_metric=checked_value_metric("solve_edit", value_metric, lacking))
    problem, notes = _within_reach(posed)
    notes += _remarks(problem)
    solve = _solve_dual if problem.dual else _solve_primal
    edit, remark = (_solve_two_sided if problem.value_metric else solve)(problem)
    notes += [remark] if remark else []
    for note in notes:
        warnings.warn(f"solve_edit: {note}", RankeditWarning, stacklevel=3)
    report = EditReport(
        _residual(problem, edit), edit.drift(metric), metric.condition, tuple(notes)
    )
    edit = edit.to(device=keys.device)
    return LowRank(edit.up, edit.down, report)


def _posed(
    keys: Keys, lacking: Values, metric: Metric, softness: float | Tensor, hold: Keys | None
) -> _Problem:
    device = metric.device or keys.device
    rows = check_rows("solve_edit", "keys", keys, metric.dim).detach().to(device)
    soft = checked_weights("solve_edit", "softness", softness, len(keys), device)
    lacking, held = lacking.to(device).double(), 0
    if hold is not None:
        held = len(check_rows("solve_edit", "hold", hold, metric.dim, of="metric"))
        rows = torch.cat([rows.double(), hold.detach().to(device).double()])
        lacking = torch.cat([lacking, lacking.new_zeros(held, lacking.shape[1])])
    return _Problem(
        metric,
        rows,
        lacking,
        torch.cat([soft, soft.new_zeros(held)]),
        (*(f"key {i}" for i in range(len(keys))), *(f"held key {i}" for i in range(held))),
    )


def _within_reach(problem: _Problem) -> tuple[_Problem, list[str]]:
    """The rows that the metric allows to move; a row that cannot move is met if it need not."""
    reach = problem.metric.reach(problem.keys)
    moved = problem.lacking.abs().amax(1) > 0
    if bool((moved & (reach < _NO_REACH)).any()):
        index = int(torch.where(moved, reach, torch.inf).argmin())
        raise SolveError(
            f"solve_edit: {problem.names[index]} is zero inside the subspace that the metric "
            "allows, so nothing can change what it gives; choose another key, or a metric with a "
            "larger null space."
        )
    little, kept, notes = moved & (reach < _LITTLE_REACH), reach >= _NO_REACH, []
    if bool(little.any()):
        notes.append(
            f"only {float(reach[little].min()):.1e} of a key's squared length lies inside the "
            "subspace that the metric allows; the edit will be large"
        )
    # Rows without reach would make the Gram matrix singular; they need no change to be met.
    if bool(kept.all()):
        return problem, notes
    kept[0] |= not bool(kept.any())  # an edit needs a row, if only one of zeros
    return _rows_of(problem, kept), notes


def _rows_of(problem: _Problem, kept: Tensor) -> _Problem:
    keys, lacking, softness = (
        rows[kept] for rows in (problem.keys, problem.lacking, problem.softness)
    )
    names = tuple(name for name, keep in zip(problem.names, kept.tolist(), strict=True) if keep)
    return replace(problem, keys=keys, lacking=lacking, softness=softness, names=names)


def _remarks(problem: _Problem) -> list[str]:
    metric, notes = problem.metric, []
    if metric.typical_energy is not None:
        unusual = metric.energy(problem.keys) / metric.typical_energy
        if float(unusual.max()) > _UNUSUAL:
            notes.append(
                f"{problem.names[int(unusual.argmax())]} is {float(unusual.max()):.1e} times as "
                "unusual as the data behind the statistics; it may lie outside of what the "
                "projection reads"
            )
    if metric.condition > _WORST_CONDITION:
        notes.append(f"condition number {metric.condition:.1e}; use a larger ridge")
    return notes


def _solve_dual(problem: _Problem) -> tuple[LowRank, str]:
    # In halves: with Y = K B and rows P spanning those of Y, ΔWᵀ = B Pᵀ U, where U solves a system
    # of the square root of the condition number that K A Kᵀ has.
    system = GramSystem.of(problem.metric.whiten(problem.keys), problem.softness)
    return _through(system, problem), system.remark


def _through(system: GramSystem, problem: _Problem) -> LowRank:
    down = problem.metric.unwhiten(system.rows)
    solution = system.solve(problem.lacking, product(problem.keys, down.T), problem.names)
    return LowRank(solution.T.contiguous(), down)


def _solve_primal(problem: _Problem) -> tuple[LowRank, str]:
    weights = 1 / problem.softness
    metric = problem.metric.extended(problem.keys, weights, label="keys")
    delta = metric.solve(transposed_product(problem.lacking * weights[:, None], problem.keys))
    out_features, in_features = delta.shape
    # One factor is the identity: the rank is at most the smaller width whatever the keys.
    if out_features <= in_features:
        return LowRank(torch.eye(out_features).to(delta), delta), ""
    return LowRank(delta, torch.eye(in_features).to(delta)), ""


def _solve_two_sided(problem: _Problem) -> tuple[LowRank, str]:
    # With X = ΔW H_M, M = H_M H_Mᵀ, it costs tr(H X Xᵀ). What equalities need lies in the span of
    # their whitened rows, and the rest beside it: no term of the cost has both. So equalities are
    # met first, where H drops out, and what soft keys lack then is met beside them.
    cost = problem.value_metric or Metric.identity(problem.lacking.shape[1])
    sided = TwoSided.of(cost, problem.lacking)
    hard = problem.softness == 0
    soft, equal = _rows_of(problem, ~hard), _rows_of(problem, hard)
    rows = problem.metric.whiten(problem.keys)
    whitened, parts, remark = rows[~hard], [], ""
    if bool(hard.any()):
        sided.check_confined(equal.lacking, equal.names)
        system = GramSystem.of(rows[hard], equal.softness)
        first, remark = _through(system, equal), system.remark
        whitened = beside(whitened, system.rows)
        met = product(soft.keys, first.down.T) @ first.up.T
        soft, parts = replace(soft, lacking=soft.lacking - met), [first]
    if not bool(hard.all()):
        up, down = sided.ridge(whitened, soft.softness, soft.lacking)
        parts.append(LowRank(up, problem.metric.unwhiten(down)))
    return sum(parts[1:], parts[0]), remark


def _residual(problem: _Problem, edit: LowRank) -> float:
    lacked = float(problem.lacking.norm())
    # Whichever is cheaper: through the factors, or through the full matrix of a large batch.
    if edit.rank < edit.out_features:
        given = product(problem.keys, edit.down.T) @ edit.up.T
    else:
        given = product(problem.keys, edit.delta().T)
    return float(given.sub_(problem.lacking).norm()) / lacked if lacked else 0.0
