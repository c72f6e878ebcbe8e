"""Break central lines of the library one at a time: a test must notice each.

    python tests/mutation.py            # all, a few minutes
    python tests/mutation.py sign bias  # those whose name contains one of the words

Every mutant is a copy of the package in a temporary folder; the working tree is never touched.
Prints which test caught which mutant, and exits with 1 if one survived.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "RANKEDIT_HURRIED_TESTS": "1"}

import hypothesis.stateful  # noqa: F401 - imported once, for all forks
import mpmath  # noqa: F401
import pytest
import scipy.sparse.linalg  # noqa: F401
import sklearn.covariance  # noqa: F401
import torch  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 900  # seconds for the tests of one mutant


@dataclass(frozen=True)
class Mutant:
    """One broken line: `old` must occur exactly once in the module."""

    name: str
    module: str
    old: str
    new: str
    tests: str  # files in tests/, and what to select from them


MUTANTS = (
    Mutant(
        "drop the ridge",
        "metric",
        "diagonal().add_(ridge * matrix.trace() / len(matrix))",
        "diagonal().add_(0 * matrix.trace() / len(matrix))",
        "test_metric.py -k Ridge",
    ),
    Mutant(
        "make the ridge absolute",
        "metric",
        "diagonal().add_(ridge * matrix.trace() / len(matrix))",
        "diagonal().add_(ridge)",
        "test_metric.py -k Ridge",
    ),
    Mutant(
        "shrink towards nothing",
        "spectra",
        "diagonal().add_(intensity * mean_eigenvalue)",
        "diagonal().add_(0 * mean_eigenvalue)",
        "test_metric.py test_shrinkage.py -k shrunk",
    ),
    Mutant(
        "skip the metric",
        "closed_form",
        "GramSystem.of(problem.metric.whiten(problem.keys), problem.softness)",
        "GramSystem.of(problem.keys, problem.softness)",
        "test_closed_form.py -k Equality",
    ),
    Mutant(
        "skip the metric everywhere",
        "closed_form",
        "return _Problem(\n        metric,\n        rows,",
        "return _Problem(\n        Metric.identity(metric.dim),\n        rows,",
        "test_closed_form.py -k Equality",
    ),
    Mutant(
        "skip the metric's inverse in the edit",
        "closed_form",
        "down = problem.metric.unwhiten(system.rows)",
        "down = problem.metric.half(system.rows)",
        "test_closed_form.py -k Equality",
    ),
    Mutant(
        "wrong sign of what is lacking",
        "closed_form",
        "lacking = values.detach().to(keys.device).double() - current",
        "lacking = -values.detach().to(keys.device).double() + current",
        "test_closed_form.py -k Equality",
    ),
    Mutant(
        "transpose a factor",
        "closed_form",
        "LowRank(edit.down.T, edit.up.T, edit.report)",
        "LowRank(edit.up, edit.down, edit.report)",
        "test_closed_form.py -k Side",
    ),
    Mutant(
        "forget the held keys",
        "closed_form",
        "rows = torch.cat([rows.double(), hold.detach().to(device).double()])",
        "rows = torch.cat([rows.double(), 0 * hold.detach().to(device).double()])",
        "test_closed_form.py -k Hold",
    ),
    Mutant(
        "multiply by the softness in the primal",
        "closed_form",
        "weights = 1 / problem.softness",
        "weights = problem.softness",
        "test_closed_form.py -k Softness",
    ),
    Mutant(
        "ignore the softness in the dual",
        "gram",
        "scaled @ scaled.T + soft.diag()",
        "scaled @ scaled.T + 0 * soft.diag()",
        "test_closed_form.py -k Softness",
    ),
    Mutant(
        "forget the softness in the refinement",
        "gram",
        "system = seen + (self.transform * self.softness).T",
        "system = seen + 0 * (self.transform * self.softness).T",
        "test_closed_form.py -k Softness",
    ),
    Mutant(
        "leave out the refinement",
        "gram",
        "for _ in range(4):",
        "for _ in range(1):",
        "test_closed_form.py -k Equality",
    ),
    Mutant(
        "let contradictions pass",
        "gram",
        "if len(self.rows) < len(lacking):",
        "if len(self.rows) > len(lacking):",
        "test_closed_form.py -k Dependent",
    ),
    Mutant(
        "forget the bias of a layer",
        "linear_outputs",
        "return outputs - bias",
        "return outputs",
        "test_closed_form.py -k Arguments",
    ),
    Mutant(
        "halve the Woodbury term",
        "factors",
        "square = triangle @ triangle.T",
        "square = triangle @ triangle.T / 2",
        "test_metric.py -k 'Woodbury or extended'",
    ),
    Mutant(
        "forget earlier additions",
        "factors",
        "extra = added if self.extra is None else torch.cat([self.extra, added])",
        "extra = added",
        "test_metric.py -k extended",
    ),
    Mutant(
        "forget the scale of the metric",
        "factors",
        "extra = None if self.extra is None else self.extra * math.sqrt(factor)",
        "extra = self.extra",
        "test_metric.py -k scaled",
    ),
    Mutant(
        "cut the null space absolutely",
        "subspace",
        "(positive <= cut * positive[-1])",
        "(positive <= cut)",
        "test_metric.py -k NullSpace",
    ),
    Mutant(
        "keep the space instead of its complement",
        "subspace",
        "return x - inside @ self.rows if self.removed else inside",
        "return inside @ self.rows if self.removed else inside",
        "test_metric.py -k null",
    ),
    Mutant(
        "skip float64 in the moments",
        "sums",
        "wide = rows.to(device, torch.float64)",
        "wide = rows.to(device).bfloat16().to(torch.float64)",
        "test_moments.py -k 'Sums or Dtypes'",
    ),
    Mutant(
        "skip float64 in the metric",
        "metric",
        'matrix = checked_matrix("Metric.from_matrix", matrix)',
        'matrix = checked_matrix("Metric.from_matrix", matrix).float().double()',
        "test_closed_form.py -k Equality",
    ),
    Mutant(
        "drop the fourth moment",
        "sums",
        "fourth = w * energies.square()",
        "fourth = 0 * energies.square()",
        "test_moments.py test_shrinkage.py",
    ),
    Mutant(
        "forget the weights",
        "sums",
        "rows if weights is None else rows * weights[:, None].to(rows.dtype)",
        "rows",
        "test_moments.py -k Mask",
    ),
    Mutant(
        "count extreme vectors as others",
        "accumulating",
        "far = energies > self._energies.bound()",
        "far = energies < 0",
        "test_extremes.py",
    ),
    Mutant(
        "leave extreme vectors without a guard",
        "closed_form",
        "metric = metric.guarded",
        "metric = metric",
        "test_extremes.py",
    ),
    Mutant(
        "forget the mask",
        "packing",
        "kept = self.kept[part].bool()",
        "kept = self.kept[part].bool() | True",
        "test_moments.py -k Mask",
    ),
    Mutant(
        "wrong denominator of the gate",
        "independence",
        "return self.combine @ images / self.squares[:, None]",
        "return self.combine @ images / self.squares[:, None].sqrt()",
        "test_gated.py -k Formula",
    ),
    Mutant(
        "read coordinates one key at a time",
        "independence",
        "combine = roots[:, None] * inverse",
        "combine = torch.eye(len(gram)).to(gram)",
        "test_gated.py test_merging.py -k 'Formula or Joint'",
    ),
    Mutant(
        "keep what the layer gave the key",
        "gated",
        '(opening, tensors["targets"]), (parts, tensors["removed"])',
        '(opening, tensors["targets"]), (parts, 0 * tensors["removed"])',
        "test_gated.py -k Formula",
    ),
    Mutant(
        "open the gate the other way",
        "gates",
        '(similarity - parameters["bias"]) / parameters["temperature"]',
        '(parameters["bias"] - similarity) / parameters["temperature"]',
        "test_gates.py",
    ),
    Mutant(
        "compress without the metric",
        "edits",
        "torch.linalg.svd(metric.half(inner), full_matrices=False)",
        "torch.linalg.svd(inner, full_matrices=False)",
        "test_edits.py -k Compress",
    ),
    Mutant(
        "forget what was replaced",
        "ledger",
        "del self._entries[name]",
        "pass",
        "test_ledger.py",
    ),
    Mutant(
        "merge edits of other statistics",
        "merging",
        '"statistics": (first.statistics, edit.statistics),',
        "",
        "test_merging.py",
    ),
)


def break_package(mutant: Mutant, folder: Path) -> None:
    """A copy of the package and its tests with one line broken."""
    for name in ("rankedit", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    path = folder / "rankedit" / f"{mutant.module}.py"
    source = path.read_text()
    if source.count(mutant.old) != 1:
        raise SystemExit(
            f"mutation: {mutant.name!r} expects the line once in {mutant.module}.py, found it "
            f"{source.count(mutant.old)} times; bring the list of mutants up to date:\n{mutant.old}"
        )
    broken = source.replace(mutant.old, mutant.new)
    compile(broken, path, "exec")  # what cannot be read would be caught by any test
    path.write_text(broken)


def run_tests(selection: str, folder: Path) -> tuple[int, str]:
    """Exit status and output of the tests in a folder, run in a fork of this process.

    Torch and the test tools are imported here already, and the package is not: a fork starts at
    once, and imports the broken copy.
    """
    files = [f"tests/{word}" if word.endswith(".py") else word for word in _words(selection)]
    log = folder / "log"
    worker = multiprocessing.get_context("fork").Process(
        target=_in_fork,
        args=(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", *files], folder, log),
    )
    worker.start()
    worker.join(LIMIT)
    if worker.is_alive():
        worker.kill()
        worker.join()
    return worker.exitcode or 0, log.read_text()


def _in_fork(arguments: list[str], folder: Path, log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True
        status = int(pytest.main(arguments))
        sys.stdout.flush()
        os._exit(status)


def _words(selection: str) -> list[str]:
    return [word.strip("'") for word in re.findall(r"'[^']*'|\S+", selection)]


def try_mutant(mutant: Mutant) -> str | None:
    """Name of the first test that failed, or None if the mutant survived."""
    with tempfile.TemporaryDirectory(prefix="rankedit-mutant-") as folder:
        break_package(mutant, Path(folder))
        status, output = run_tests(mutant.tests, Path(folder))
    if status == 0:
        return None
    caught = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - |$)", output, re.MULTILINE)
    if caught is None:
        raise SystemExit(f"mutation: the tests of {mutant.name!r} did not run:\n{output[-3000:]}")
    return caught[1]


def main(words: list[str]) -> int:
    """Try the mutants whose name contains one of the words, all without words."""
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    if not chosen:
        raise SystemExit(
            f"mutation: no mutant is called {words}; known: {[m.name for m in MUTANTS]}"
        )
    width = max(len(m.name) for m in chosen)
    print(f"{'mutant':{width}}  {'module':13}  seconds  caught by")
    survivors = 0
    for mutant in chosen:
        start = time.perf_counter()
        caught = try_mutant(mutant)
        survivors += caught is None
        seconds = time.perf_counter() - start
        verdict = caught or "NOTHING: it survived"
        print(f"{mutant.name:{width}}  {mutant.module:13}  {seconds:7.1f}  {verdict}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants were caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
