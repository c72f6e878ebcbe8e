"""Small edits and statistics that the tests of storage save."""

import torch

from rankedit.gated import GatedEdit
from rankedit.gates import Gate
from rankedit.metric import Metric
from rankedit.moments import SecondMoment
from rankedit.provenance import Provenance


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moment_of(dim: int, rows: int = 50) -> SecondMoment:
    origin = Provenance(model="m", module="a", corpus="c", dtype="bfloat16", tokens=rows)
    return SecondMoment(dim, provenance=origin).update(normal(rows, dim).bfloat16())


def gated_edit(n: int = 2, width: int = 3, gate: Gate | None = None, **options) -> GatedEdit:
    metric = Metric.from_moment(moment_of(5))
    return GatedEdit(normal(n, 5, seed=1), normal(n, width, seed=2), metric, gate, **options)
