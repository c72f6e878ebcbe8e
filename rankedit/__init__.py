"""Closed-form and gated low-rank edits of linear projections inside trained networks.

A projection `y = W x + b` is edited by saying which input (a key) is to give which output (a
value); everything else changes as little as possible, measured on the inputs that the projection
really reads (its statistics).
"""

from typing import TYPE_CHECKING

from rankedit.lazy import lazy_names

if TYPE_CHECKING:
    from rankedit.closed_form import solve_edit
    from rankedit.collecting.checkpoint import Checkpoint
    from rankedit.collecting.collect import collect
    from rankedit.convergence import relative_change
    from rankedit.cross_covariance import CrossCovariance
    from rankedit.edits import EditReport, LowRank
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
    from rankedit.files.format import EditFile
    from rankedit.files.lora import DIFFUSERS, KOHYA, PEFT, from_lora, to_lora
    from rankedit.files.shards import merge_shards, save_merged
    from rankedit.files.storage import check_base, load, save
    from rankedit.gated import GatedEdit
    from rankedit.gates import Gate, Identity, JointSigmoid, Sigmoid
    from rankedit.learning.values import (
        LearnedValues,
        OutputSite,
        StepReport,
        ValueSearch,
        ValueSearchError,
        optimise_value,
    )
    from rankedit.ledger import Conflict, Ledger
    from rankedit.linear_outputs import linear_output, linear_output_transposed
    from rankedit.merging import merge
    from rankedit.metric import Metric
    from rankedit.models.fingerprints import fingerprint
    from rankedit.models.fusing import fuse_, unfuse_
    from rankedit.models.patching import Attachment, attach, detach_all
    from rankedit.models.probe import Reading, Span, probe
    from rankedit.models.projections import Projection
    from rankedit.models.selecting import select
    from rankedit.models.sketches import Sketch
    from rankedit.moments import SecondMoment
    from rankedit.placed import PlacedEdit, ToldEdit
    from rankedit.protocol import Edit
    from rankedit.provenance import Provenance
    from rankedit.sharding import Shard
    from rankedit.shrinkage import ledoit_wolf, oas
else:
    __getattr__, __dir__ = lazy_names(__name__)

__version__ = "0.2.0"

__all__ = [
    "DIFFUSERS",
    "KOHYA",
    "PEFT",
    "AttachError",
    "Attachment",
    "Checkpoint",
    "Conflict",
    "CrossCovariance",
    "Edit",
    "EditFile",
    "EditFileError",
    "EditReport",
    "Gate",
    "GatedEdit",
    "Identity",
    "JointSigmoid",
    "LearnedValues",
    "Ledger",
    "LowRank",
    "Metric",
    "OutputSite",
    "PlacedEdit",
    "Projection",
    "ProjectionError",
    "Provenance",
    "RankeditError",
    "RankeditWarning",
    "Reading",
    "SecondMoment",
    "ShapeError",
    "Shard",
    "Sigmoid",
    "Sketch",
    "SolveError",
    "Span",
    "StatisticsError",
    "StepReport",
    "ToldEdit",
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
    "linear_output_transposed",
    "load",
    "merge",
    "merge_shards",
    "oas",
    "optimise_value",
    "probe",
    "relative_change",
    "save",
    "save_merged",
    "select",
    "solve_edit",
    "to_lora",
    "unfuse_",
]
