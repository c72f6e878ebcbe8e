"""Conformance kit: what a new solver and a new kind of edit must do, in one call each.

    >>> from rankedit import solve_edit
    >>> from rankedit.testing import check_solver
    >>> check_solver(solve_edit)

Needs no test framework: a property that does not hold raises `ConformanceError`, which is an
`AssertionError`, and says which property, by how much, and what the usual cause is.
"""

from __future__ import annotations

from rankedit.errors import ConformanceError
from rankedit.testing.edits import check_edit
from rankedit.testing.solvers import Solver, check_solver

__all__ = ["ConformanceError", "Solver", "check_edit", "check_solver"]
