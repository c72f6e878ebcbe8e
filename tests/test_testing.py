"""The conformance kit passes what is right, and catches each of many mistakes by name."""

import itertools
import subprocess
import sys

import pytest
import torch

import rankedit as rk
from rankedit.testing import ConformanceError, check_edit, check_solver

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


def solve(weight, keys, values, metric, softness=0.0):
    """A small solver of its own: the formula."""
    weight, keys, values = weight.double(), keys.double(), values.double()
    images = metric.solve(keys)
    gram = images @ keys.T + softness * torch.eye(len(keys))
    lacking = values - keys @ weight.T
    return rk.LowRank(torch.linalg.solve(gram, lacking).T, images)


def changed(edit, factor=1.0, dtype=torch.float64):
    return rk.LowRank(edit.up * factor, edit.down).to(dtype)


def in_place(weight, keys, values, metric):
    edit = solve(weight, keys, values, metric)
    keys /= keys.norm(dim=1, keepdim=True)
    return edit


def wide_metric(metric):
    """The metric without its restriction to a subspace."""
    inverse = metric.solve(torch.eye(metric.dim))
    return rk.Metric.from_matrix(torch.linalg.pinv(inverse) + 1e-9 * torch.eye(metric.dim))


def random_solver():
    generator = torch.Generator().manual_seed(0)

    def solver(weight, keys, values, metric):
        noise = 1 + 1e-3 * torch.rand((), generator=generator)
        return changed(solve(weight, keys, values, metric), float(noise))

    return solver


def with_extra(weight, keys, values, metric):
    """Meets every equality, and spends more than it must."""
    edit = solve(weight, keys, values, metric)
    free = torch.linalg.qr(keys.double().T, mode="complete").Q[:, len(keys) :]
    inside = metric.solve(free[:, :1].T)
    inside = inside - inside @ torch.linalg.pinv(keys.double()) @ keys.double()
    return edit + rk.LowRank(0.1 * edit.up.norm() * torch.ones(len(weight), 1).to(inside), inside)


# What is wrong: the solver, and what the kit says of it.
BROKEN = {
    "ignores the metric": (
        lambda w, k, v, m: solve(w, k, v, rk.Metric.identity(m.dim)),
        "no cheaper edit may exist, .*it seems that the metric is ignored",
    ),
    "applies the metric": (
        lambda w, k, v, m: solve(w, k, v, rk.Metric.from_matrix(m.solve(torch.eye(m.dim)))),
        "no cheaper edit may exist, .*the metric is applied instead of inverted",
    ),
    "transposes the edit": (
        lambda w, k, v, m: rk.LowRank(solve(w, k, v, m).down.T, solve(w, k, v, m).up.T),
        "must have the weight's shape .*a factor is transposed",
    ),
    "returns another shape": (
        lambda w, k, v, m: rk.LowRank(torch.ones(2, 1).double(), torch.ones(1, 3).double()),
        r"must have the weight's shape \[5, 9\], got up \[2, 1\] and down \[1, 3\]\.",
    ),
    "has the wrong sign": (
        lambda w, k, v, m: changed(solve(w, k, v, m), -1.0),
        "every key must give its value, .*it seems that the sign is wrong",
    ),
    "is soft where it says it is not": (
        lambda w, k, v, m: solve(w, k, v, m, softness=1.0),
        "every key must give its value, .*softness is added that was not declared",
    ),
    "forgets rows": (
        lambda w, k, v, m: solve(w, k[:1], v[:1], m),
        "every key must give its value, but 3 of 4 keys .*all keys but the first are forgotten",
    ),
    "ignores what the layer gives": (
        lambda w, k, v, m: solve(torch.zeros_like(w), k, v, m),
        "every key must give its value, but 1 of 1 keys lack",
    ),
    "changes its arguments": (in_place, "the solver changed keys in place"),
    "changes the metric": (
        lambda w, k, v, m: (solve(w, k, v, m), m._factors.lower.mul_(2))[0],
        "the solver changed the metric in place",
    ),
    "returns a matrix": (
        lambda w, k, v, m: solve(w, k, v, m).delta(),
        "the result must be a LowRank, got a float64 tensor",
    ),
    "rounds to float32": (
        lambda w, k, v, m: changed(solve(w, k, v, m), dtype=torch.float32),
        r"must be float64, got \{torch.float32\}; solve in float64",
    ),
    "uses an absolute ridge": (
        lambda w, k, v, m: solve(w, k, v, m.extended(torch.eye(m.dim), 1e-5)),
        "no cheaper edit may exist",
    ),
    "uses an absolute threshold": (
        lambda w, k, v, m: (
            solve(w, k, v, m) if k.abs().max() < 1 else changed(solve(w, k, v, m), 0.5)
        ),
        "other units of the inputs must scale the edit, but the edits differ by 0.5",
    ),
    "depends on the order": (
        lambda w, k, v, m: (
            solve(w, k, v, m) if k.sum() > 0 or len(k) == 1 else solve(w, k.flip(0), v, m)
        ),
        "every key must give its value|the order of the keys must not matter",
    ),
    "edits what is satisfied": (
        lambda w, k, v, m: (
            changed(solve(w, k, v + 1, m)) if torch.allclose(v, k @ w.T) else solve(w, k, v, m)
        ),
        "keys that give their values must get no edit",
    ),
    "leaves the subspace": (
        lambda w, k, v, m: solve(w, k, v, m if m.rank == m.dim else wide_metric(m)),
        "must lie in the metric's subspace, but has up to",
    ),
    "draws random numbers": (random_solver(), "the same call twice must give the same edit"),
    "spends more than it must": (with_extra, "no cheaper edit may exist, but one costs"),
    "breaks on float32": (
        lambda w, k, v, m: changed(solve(w, k, v, m), 1.0 if w.dtype == torch.float64 else 1.01),
        "a float32 weight must get the same edit, to 1e-3, but the edits differ by 0.01",
    ),
}

SOFTLY_BROKEN = {
    "ignores softness": (solve, "no cheaper edit may exist, .*it seems that softness is ignored"),
    "ignores the metric": (
        lambda w, k, v, m: solve(w, k, v, rk.Metric.identity(m.dim), 2.0),
        "it seems that the metric is ignored|must lie in the metric's subspace",
    ),
    "adds softness as weight": (
        lambda w, k, v, m: solve(w, k, v, m, 0.5),
        "no cheaper edit may exist",
    ),
    "has the wrong sign": (
        lambda w, k, v, m: changed(solve(w, k, v, m, 2.0), -1.0),
        "it seems that the sign is wrong",
    ),
    "forgets rows": (
        lambda w, k, v, m: solve(w, k[:1], v[:1], m, 2.0),
        "all keys but the first are forgotten",
    ),
}


class TestCheckSolver:
    @pytest.mark.parametrize("softness", [0.0, 1e-4, 1.0, 15.0])
    def test_passes_the_library_s_own_solver(self, softness):
        def solver(weight, keys, values, metric):
            return rk.solve_edit(weight, keys, values, metric, softness=softness)

        check_solver(solver, softness=softness)

    @pytest.mark.parametrize("softness", [0.0, 2.0])
    def test_passes_a_solver_of_one_s_own(self, softness):
        check_solver(lambda w, k, v, m: solve(w, k, v, m, softness), softness=softness, seed=3)

    @pytest.mark.parametrize("soft", [[0.5], [2.0, 0.0, 1e-3], [1.0] * 14, [0.0, 0.0]])
    def test_takes_softness_for_each_key(self, soft):
        soft = torch.tensor(soft)

        def solver(weight, keys, values, metric):
            return rk.solve_edit(weight, keys, values, metric, softness=soft)

        check_solver(solver, softness=soft)
        if bool(soft.any()):
            with pytest.raises(ConformanceError, match="it seems that softness is ignored"):
                check_solver(solve, softness=soft)
        if len(soft.unique()) > 1:
            with pytest.raises(ConformanceError, match=r"no cheaper edit may|must give its value"):
                check_solver(solver, softness=soft.flip(0))

    @pytest.mark.parametrize("soft", [-1.0, torch.ones(2, 2), torch.tensor([1.0, float("nan")])])
    def test_refuses_softness_that_is_none(self, soft):
        with pytest.raises(rk.ShapeError, match=r"check_solver: softness must be one number, or "):
            check_solver(solve, softness=soft)

    def test_passes_memit_one_request_at_a_time(self):
        def sequential(weight, keys, values, metric):
            weight, edit = weight.double(), None
            for key, value in zip(keys.double().split(1), values.double().split(1), strict=True):
                step = rk.solve_edit(weight, key, value, metric, softness=1.0)
                weight, metric = weight + step.delta(), metric.extended(key)
                edit = step if edit is None else edit + step
            return edit

        check_solver(sequential, softness=1.0)

    @pytest.mark.parametrize("mistake", BROKEN)
    def test_catches_a_solver_that(self, mistake):
        solver, message = BROKEN[mistake]
        with pytest.raises(ConformanceError, match=f"^check_solver: .*({message})"):
            check_solver(solver)

    @pytest.mark.parametrize("mistake", SOFTLY_BROKEN)
    def test_catches_a_soft_solver_that(self, mistake):
        solver, message = SOFTLY_BROKEN[mistake]
        with pytest.raises(ConformanceError, match=message):
            check_solver(solver, softness=2.0)

    def test_fails_as_an_assertion_does(self):
        with pytest.raises(AssertionError):
            check_solver(lambda w, k, v, m: None)
        assert issubclass(ConformanceError, rk.RankeditError)


class Broken:
    """A right edit, some of whose parts a test puts wrong."""

    def __init__(self, **wrong):
        self.edit = rk.LowRank(torch.ones(3, 2), torch.arange(8.0).reshape(2, 4) + 1)
        self.wrong = wrong

    in_features = 4

    @property
    def out_features(self):
        return self.wrong.get("out_features", 3)

    def bind(self, outputs):
        tensors = {**self.edit.bind(outputs), "keys": outputs(torch.eye(4)), "bias": torch.ones(())}
        return self.wrong["bind"](tensors, outputs) if "bind" in self.wrong else tensors

    def added(self, x, tensors):
        if "added" in self.wrong:
            return self.wrong["added"](self, x, tensors)
        return self.edit.added(x, tensors)

    def settings(self):
        return self.wrong.get("settings", frozenset({"bias"}))


CALLS = itertools.count()


def counting(tensors, outputs):
    return tensors | {"bias": torch.tensor(float(next(CALLS)))}


def noisy(edit, x, tensors):
    return edit.edit.added(x, tensors) + next(CALLS)


def in_half(edit, x, tensors):
    return (x.bfloat16() @ tensors["down"].T.bfloat16() @ tensors["up"].T.bfloat16()).float()


def by_dtype(edit, x, tensors):
    down, up = tensors["down"].to(x.dtype), tensors["up"].to(x.dtype)
    with torch.autocast("cpu", enabled=False):
        return x @ down.T @ up.T


def by_autocast(edit, x, tensors):
    return x.float() @ tensors["down"].T @ tensors["up"].T


def branching(edit, x, tensors):
    added = edit.edit.added(x, tensors)
    return added if float(tensors["bias"]) > 0 else -added


BROKEN_EDITS = {
    "bind gives no tensor": (
        {"bind": lambda t, o: t | {"bias": 0.5}},
        "must give tensors under identifiers, got 'bias': float 0.5",
    ),
    "bind gives a name that no buffer can have": (
        {"bind": lambda t, o: t | {"a.b": torch.ones(())}},
        "must give tensors under identifiers, got 'a.b'",
    ),
    "bind runs the layer on something else": (
        {"bind": lambda t, o: t | {"x": o(torch.ones(4))}},
        r"bind must run the layer on keys \[n, 4\], got a float32 tensor of shape \[4\]",
    ),
    "bind changes": ({"bind": counting}, "bind must give the same every time"),
    "settings are not bound": (
        {"settings": frozenset({"temperature"})},
        r"settings \['temperature'\] are not among what bind gives",
    ),
    "added has another width": (
        {"added": lambda e, x, t: x},
        r"added must give \[..., 3\] for x \[2, 3, 4\], got a float32 tensor of shape \[2, 3, 4\]",
    ),
    "added is not finite": (
        {"added": lambda e, x, t: e.edit.added(x, t) / 0},
        "added must be finite floats",
    ),
    "added changes x": (
        {"added": lambda e, x, t: e.edit.added(x.mul_(2), t)},
        "added changed x in place",
    ),
    "added changes its tensors": (
        {"added": lambda e, x, t: e.edit.added(x, t) + t["bias"].add_(1)},
        "added must not change its tensors",
    ),
    "added changes": ({"added": noisy}, "added must give the same every time"),
    "added mixes the inputs": (
        {"added": lambda e, x, t: e.edit.added(x - x.mean(), t)},
        r"an input must be treated alike alone and in a batch \(x\[0\]\)|x\[1, 2\]",
    ),
    "added reads the edit itself": (
        {"added": lambda e, x, t: x.float() @ e.edit.down.T @ e.edit.up.T},
        "must read nothing but its tensors, .* fails where these have no data",
    ),
    "added asks for values": ({"added": branching}, "and no values of them in Python"),
    "added computes in half precision": (
        {"added": in_half},
        "must compute in float32, but all its results are torch.bfloat16 numbers",
    ),
    "added computes in the dtype of the input": (
        {"added": by_dtype},
        "bfloat16 inputs must be computed with in float32, but the results differ by",
    ),
    "added listens to autocast": ({"added": by_autocast}, "autocast must cost no digits"),
    "added stops gradients": (
        {"added": lambda e, x, t: e.edit.added(x.detach(), t)},
        "must let finite gradients through to x",
    ),
}


class TestCheckEdit:
    @pytest.mark.parametrize(
        "edit",
        [
            rk.LowRank(torch.ones(3, 2), torch.ones(2, 4)),
            rk.LowRank(torch.ones(3, 2).double(), torch.ones(2, 4).double()),
            rk.GatedEdit(torch.eye(4)[:1], torch.ones(1, 3), rk.Metric.identity(4)),
            rk.GatedEdit(
                torch.eye(4)[:2],
                torch.ones(2, 3).requires_grad_(),
                rk.Metric.from_matrix(torch.diag(torch.arange(1.0, 5.0))),
                rk.Sigmoid(bias=torch.tensor([0.4, 0.6])),
                normalised=True,
                floor=0.1,
            ),
            rk.GatedEdit(torch.eye(4)[:2], torch.ones(2, 3), rk.Metric.identity(4), rk.Identity()),
            Broken(),
        ],
        ids=["low rank", "float64", "gated", "normalised, floor", "identity", "of one's own"],
    )
    def test_passes_what_is_right(self, edit):
        check_edit(edit)
        check_edit(edit, weight=torch.ones(3, 4).bfloat16(), seed=4)

    @pytest.mark.parametrize("mistake", BROKEN_EDITS)
    def test_catches_an_edit_whose(self, mistake):
        wrong, message = BROKEN_EDITS[mistake]
        with pytest.raises(ConformanceError, match=f"^check_edit: .*({message})"):
            check_edit(Broken(**wrong))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda x, down, up: ((x.float() @ down.T, up),), r"pairs \[..., r\] and \[r, 3\]"),
            (lambda x, down, up: ((x.float() @ down.T, -up.T),), "terms must sum to added, but"),
        ],
    )
    def test_catches_terms_that_are_not_what_is_added(self, wrong, message):
        class Wrong(Broken):
            def terms(self, x, tensors):
                return wrong(x, tensors["down"], tensors["up"])

        with pytest.raises(ConformanceError, match=f"^check_edit: .*{message}"):
            check_edit(Wrong())

    def test_catches_what_is_no_edit(self):
        with pytest.raises(ConformanceError, match="must have in_features, out_features, bind"):
            check_edit(torch.ones(3, 4))

    def test_catches_another_projection_s_edit(self):
        with pytest.raises(ConformanceError, match=r"the weight's shape \[5, 4\], got \[3, 4\]"):
            check_edit(Broken(), weight=torch.ones(5, 4))


def test_the_kit_needs_no_test_framework():
    code = (
        "import sys; sys.modules['pytest'] = sys.modules['hypothesis'] = None\n"
        "import rankedit; from rankedit.testing import check_solver\n"
        "check_solver(rankedit.solve_edit)"
    )
    subprocess.run([sys.executable, "-W", "error", "-O", "-c", code], check=True)


def test_problems_are_scaled_to_the_softness():
    """Whatever the softness, ignoring it must show."""
    for softness in (1e-6, 1e6):
        with pytest.raises(ConformanceError, match="softness is ignored"):
            check_solver(solve, softness=softness)
        check_solver(lambda w, k, v, m, s=softness: solve(w, k, v, m, s), softness=softness)
