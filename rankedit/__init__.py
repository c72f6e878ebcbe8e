"""Closed-form and gated low-rank edits of linear projections inside trained networks.

A projection `y = W x + b` is edited by saying which input (a key) is to give which output (a
value); everything else changes as little as possible, measured on the inputs that the projection
really reads (its statistics).
"""

from rankedit.closed_form import solve_edit
from rankedit.edits import Edit, EditReport, LowRank
from rankedit.errors import (
    AttachError,
    EditFileError,
    ProjectionError,
    RankeditError,
    RankeditWarning,
    ShapeError,
    SolveError,
    StatisticsError,
)
from rankedit.gated import GatedEdit
from rankedit.gates import Gate, Identity, Sigmoid
from rankedit.ledger import Conflict, Ledger
from rankedit.linear_output import linear_output
from rankedit.merging import merge
from rankedit.metric import Metric
from rankedit.moments import SecondMoment
from rankedit.provenance import Provenance
from rankedit.shrinkage import ledoit_wolf, oas

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "Conflict",
    "Edit",
    "EditFileError",
    "EditReport",
    "Gate",
    "GatedEdit",
    "Identity",
    "Ledger",
    "LowRank",
    "Metric",
    "ProjectionError",
    "Provenance",
    "RankeditError",
    "RankeditWarning",
    "SecondMoment",
    "ShapeError",
    "Sigmoid",
    "SolveError",
    "StatisticsError",
    "ledoit_wolf",
    "linear_output",
    "merge",
    "oas",
    "solve_edit",
]
