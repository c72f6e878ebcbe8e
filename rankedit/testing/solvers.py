"""What every solver must do; see `rankedit.testing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankedit.edits import LowRank
from rankedit.errors import ConformanceError, ShapeError
from rankedit.metric import Metric
from rankedit.shapes import Keys, Values, Weight, describe

Solver = Callable[[Weight, Keys, Values, Metric], LowRank]

# (inputs, outputs, keys): no two alike, so that a transposed factor cannot fit.
_SIZES = ((9, 5, 1), (12, 7, 4), (5, 11, 3))

# Condition number of the problems: far enough from 1 that ignoring the metric costs a lot.
_CONDITION = 1e4


def check_solver(
    solver: Solver, *, softness: float | Tensor = 0.0, tolerance: float = 1e-7, seed: int = 0
) -> None:
    """Check that a solver finds the cheapest edit that gives keys their values.

    It is called with a weight `[out, in]`, keys `[n, in]`, values `[n, out]` and a metric of width
    `in`, for random problems of several sizes. Checked, in this order: type, shapes and dtypes of
    the result; that the arguments are left alone; that repeating, satisfied keys, the order of keys
    and the units of weight, keys and values do what they should; every key's value (softness 0);
    confinement to the metric's subspace; that no cheaper edit exists; float32 arguments.

    Args:
        solver: `(weight, keys, values, metric) -> LowRank`.
        softness: what the solver claims to use; see `rankedit.solve_edit`. With one number for each
            key, `[n]`, every problem has n keys.
        tolerance: relative error that is allowed.
        seed: of the random problems.

    Raises:
        ConformanceError: a property does not hold; the message names it.
        ShapeError: softness is neither a number nor a vector of them, or negative.
    """
    for problem in _problems(_checked_softness(softness), seed):
        edit = _checked_result(solver, problem)
        _check_repeatable(solver, problem, edit, tolerance)
        _check_values(problem, edit, tolerance)
        _check_confined(problem, edit, tolerance)
        _check_cheapest(problem, edit, tolerance)
        _check_symmetries(solver, problem, edit, tolerance)
        _check_single_precision(solver, problem)


@dataclass(frozen=True)
class _Problem:
    weight: Weight
    keys: Keys
    values: Values
    metric: Metric
    softness: Tensor

    @property
    def hard(self) -> Tensor:
        """Which keys ask for an equality `[n]`."""
        return self.softness.expand(len(self.keys)) == 0

    @property
    def lacking(self) -> Values:
        return self.values - self.keys @ self.weight.T

    def best(self, metric: Metric, softness: Tensor) -> Weight:
        """The solution, densely and by definition: `Rᵀ (K A Kᵀ + S)⁻¹ K A`."""
        images = metric.solve(self.keys)
        gram = images @ self.keys.T
        gram.diagonal().add_(softness)
        return self.lacking.T @ torch.linalg.solve(gram, images)

    def objective(self, delta: Weight) -> float:
        """Cost of an edit, and what its keys still lack if the problem is soft."""
        cost = float(self.metric.half(delta).square().sum())
        missing = (self.keys @ delta.T - self.lacking).square().sum(1)
        # What a hard key lacks is refused elsewhere, at any price.
        return cost + float((missing / self.softness.where(self.softness > 0, torch.inf)).sum())


def _checked_softness(softness: float | Tensor) -> Tensor:
    soft = torch.as_tensor(softness, dtype=torch.float64)
    if soft.ndim > 1 or not soft.numel() or not bool((soft.isfinite() & (soft >= 0)).all()):
        raise ShapeError(
            "check_solver: softness must be one number, or [n] with one for each key, finite and "
            f"not negative, got {describe(softness)}."
        )
    return soft


def _problems(softness: Tensor, seed: int) -> Iterator[_Problem]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for least, out, usual in _SIZES:
        count = len(softness) if softness.ndim else usual
        width = max(least, count + 2)  # room for a subspace that all keys have a part in
        spread = _CONDITION ** -torch.linspace(0, 1, width, dtype=torch.float64)
        columns = torch.linalg.qr(normal(width, width)).Q
        metric = Metric.from_matrix((columns * spread) @ columns.T)
        # As soft as the problem's own scale, so that softness matters and does not drown the rest.
        keys = normal(count, width)
        keys /= metric.energy(keys)[:, None].sqrt()
        keys *= softness.where(softness > 0, 1.0).sqrt().reshape(-1, 1)
        arguments = normal(out, width), keys, normal(count, out)
        yield _Problem(*arguments, metric, softness)
        yield _Problem(*arguments, metric.restricted(normal(count + 1, width)), softness)


def _checked_result(solver: Solver, problem: _Problem) -> LowRank:
    arguments = (problem.weight, problem.keys, problem.values)
    before = [tensor.clone() for tensor in arguments]
    image = problem.metric.solve(problem.keys)
    edit = solver(*arguments, problem.metric)
    if not isinstance(edit, LowRank):
        raise ConformanceError(f"check_solver: the result must be a LowRank, got {describe(edit)}.")
    shape = (edit.out_features, edit.in_features)
    if shape != tuple(problem.weight.shape):
        hint = "; a factor is transposed" if shape[::-1] == tuple(problem.weight.shape) else ""
        raise ConformanceError(
            f"check_solver: the edit must have the weight's shape {list(problem.weight.shape)}, "
            f"got up {list(edit.up.shape)} and down {list(edit.down.shape)}{hint}."
        )
    dtypes = {edit.up.dtype, edit.down.dtype}
    if dtypes != {torch.float64}:
        raise ConformanceError(
            f"check_solver: the edit of a float64 weight must be float64, got {dtypes}; solve in "
            "float64 and leave rounding to the user."
        )
    for name, tensor, copy in zip(("weight", "keys", "values"), arguments, before, strict=True):
        if not torch.equal(tensor, copy):
            raise ConformanceError(f"check_solver: the solver changed {name} in place.")
    if not torch.equal(problem.metric.solve(problem.keys), image):
        raise ConformanceError("check_solver: the solver changed the metric in place.")
    return edit


def _check_repeatable(solver: Solver, problem: _Problem, edit: LowRank, tolerance: float) -> None:
    again = solver(problem.weight, problem.keys, problem.values, problem.metric)
    _require_same("the same call twice must give the same edit", again, edit.delta(), tolerance)


def _check_values(problem: _Problem, edit: LowRank, tolerance: float) -> None:
    missing = (problem.keys @ edit.delta().T - problem.lacking).norm(dim=1) * problem.hard
    wanted = problem.lacking.norm(dim=1)
    failed = missing > tolerance * wanted
    if bool(failed.any()):
        share = float((missing / wanted).max())
        raise ConformanceError(
            f"check_solver: every key must give its value, but {int(failed.sum())} of {len(failed)}"
            f" keys lack up to {share:.2g} of what they lacked{_cause(problem, edit)}."
        )


def _check_confined(problem: _Problem, edit: LowRank, tolerance: float) -> None:
    rows = edit.delta()
    outside = 1 - float(problem.metric.reach(rows).min())
    if outside > tolerance:
        raise ConformanceError(
            "check_solver: the edit must lie in the metric's subspace, but has up to "
            f"{outside:.2g} of a row's squared length outside{_cause(problem, edit)}."
        )


def _check_cheapest(problem: _Problem, edit: LowRank, tolerance: float) -> None:
    best = problem.best(problem.metric, problem.softness)
    mine, least = problem.objective(edit.delta()), problem.objective(best)
    if mine > least * (1 + tolerance):
        raise ConformanceError(
            f"check_solver: no cheaper edit may exist, but one costs {least:.6g} where this one "
            f"costs {mine:.6g}{_cause(problem, edit)}."
        )


def _cause(problem: _Problem, edit: LowRank) -> str:
    """The usual mistakes, tried one after the other."""
    delta, metric, soft = edit.delta(), problem.metric, problem.softness
    best, identity = problem.best(metric, soft), Metric.identity(metric.dim)
    one = soft[:1] if soft.ndim else soft
    first = replace(problem, keys=problem.keys[:1], values=problem.values[:1], softness=one)
    suspects = {
        "the sign is wrong": -best,
        "the metric is ignored": problem.best(identity, soft),
        "the metric is applied instead of inverted": problem.best(_inverse(metric), soft),
        "all keys but the first are forgotten": first.best(metric, one),
        "softness is ignored": problem.best(metric, torch.zeros_like(soft)),
        "softness is added that was not declared": problem.best(metric, soft + 1.0),
    }
    for suspicion, suspect in suspects.items():
        if _difference(delta, suspect) < 1e-6 < _difference(best, suspect):
            return f"; it seems that {suspicion}"
    return ""


def _inverse(metric: Metric) -> Metric:
    matrix = metric.solve(torch.eye(metric.dim, dtype=torch.float64))
    return Metric.from_matrix(matrix, ridge=1e-12)


def _check_symmetries(solver: Solver, problem: _Problem, edit: LowRank, tolerance: float) -> None:
    weight, keys, values, metric = problem.weight, problem.keys, problem.values, problem.metric
    delta = edit.delta()
    satisfied = solver(weight, keys, keys @ weight.T, metric)
    if float(satisfied.delta().norm()) > tolerance * float(weight.norm()):
        raise ConformanceError("check_solver: keys that give their values must get no edit.")
    variants = {
        "other units of the values must scale the edit": (
            solver(weight * 8, keys, values * 8, metric) * 0.125
        ),
        "other units of the inputs must scale the edit": (
            solver(weight / 128, keys * 128, values, metric.scaled(128.0**2)) * 128
        ),
    }
    if not problem.softness.ndim:  # one for each key is bound to their order
        order = torch.arange(len(keys)).flip(0)
        variants["the order of the keys must not matter"] = solver(
            weight, keys[order], values[order], metric
        )
    if bool(problem.hard.all()):
        variants["the length of the keys must not matter"] = solver(
            weight, keys * 128, values * 128, metric
        )
        variants["the units of the metric must not matter"] = solver(
            weight, keys, values, metric.scaled(1e-4)
        )
    for claim, variant in variants.items():
        _require_same(claim, variant, delta, tolerance)


def _check_single_precision(solver: Solver, problem: _Problem) -> None:
    weight, keys, values = problem.weight.float(), problem.keys.float(), problem.values.float()
    rounded = replace(problem, weight=weight.double(), keys=keys.double(), values=values.double())
    edit = solver(weight, keys, values, problem.metric).to(torch.float64)
    best = rounded.best(problem.metric, problem.softness)
    _require_same("a float32 weight must get the same edit, to 1e-3", edit, best, 1e-3)


def _require_same(claim: str, edit: LowRank, expected: Weight, tolerance: float) -> None:
    apart = _difference(edit.delta(), expected)
    if not apart <= tolerance:
        raise ConformanceError(f"check_solver: {claim}, but the edits differ by {apart:.2g}.")


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))
