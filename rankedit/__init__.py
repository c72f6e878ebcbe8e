"""Closed-form and gated low-rank edits of linear projections inside trained networks.

A projection `y = W x + b` is edited by saying which input (a key) is to give which output (a
value); everything else changes as little as possible, measured on the inputs that the projection
really reads (its statistics).
"""

from rankedit.checkpoint import Checkpoint
from rankedit.closed_form import solve_edit
from rankedit.collect import collect
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
from rankedit.fingerprints import fingerprint
from rankedit.fusing import fuse_, unfuse_
from rankedit.gated import GatedEdit
from rankedit.gates import Gate, Identity, Sigmoid
from rankedit.ledger import Conflict, Ledger
from rankedit.linear_output import linear_output
from rankedit.lora import DIFFUSERS, KOHYA, PEFT, from_lora, to_lora
from rankedit.merging import merge
from rankedit.metric import Metric
from rankedit.moments import SecondMoment
from rankedit.patching import Attachment, attach, detach_all
from rankedit.probe import Reading, probe
from rankedit.projections import Projection
from rankedit.provenance import Provenance
from rankedit.selecting import select
from rankedit.shrinkage import ledoit_wolf, oas
from rankedit.storage import check_base, load, save
from rankedit.storage_format import EditFile
from rankedit.values import (
    LearnedValues,
    OutputSite,
    StepReport,
    ValueSearch,
    ValueSearchError,
    optimise_value,
)

__version__ = "0.1.0"

__all__ = [
    "DIFFUSERS",
    "KOHYA",
    "PEFT",
    "AttachError",
    "Attachment",
    "Checkpoint",
    "Conflict",
    "Edit",
    "EditFile",
    "EditFileError",
    "EditReport",
    "Gate",
    "GatedEdit",
    "Identity",
    "LearnedValues",
    "Ledger",
    "LowRank",
    "Metric",
    "OutputSite",
    "Projection",
    "ProjectionError",
    "Provenance",
    "RankeditError",
    "RankeditWarning",
    "Reading",
    "SecondMoment",
    "ShapeError",
    "Sigmoid",
    "SolveError",
    "StatisticsError",
    "StepReport",
    "ValueSearch",
    "ValueSearchError",
    "attach",
    "check_base",
    "collect",
    "detach_all",
    "fingerprint",
    "from_lora",
    "fuse_",
    "ledoit_wolf",
    "linear_output",
    "load",
    "merge",
    "oas",
    "optimise_value",
    "probe",
    "save",
    "select",
    "solve_edit",
    "to_lora",
    "unfuse_",
]
