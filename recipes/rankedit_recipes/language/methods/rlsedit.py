"""RLSEdit: recursive least squares with soft anchors. Wang et al., arXiv 2601.15686.

All edits so far are met softly, while the weight stays near the original one and what it gives for
anchors K₀ near what it gave:

    minimise  Σ_t ‖K_t ΔWᵀ − R_t‖² + λ ‖ΔW‖² + μ ‖K₀ ΔWᵀ − R₀‖²

It is the one equation with M = λI, softness 1, and the anchors as further rows (K₀, R₀) of softness
1/μ. The paper's recursion over t is the ledger's batch, in exact arithmetic.

`RLSEDIT` edits facts so, with the corpus as anchors that are to give what they gave: then
`μ K₀ᵀK₀ + λI` is `weight·d·(C + ridge·tr(C)/d·I)`.

Deviations: λ and μ are relative to the corpus, in vectors per input width and mean eigenvalues; the
rest is MEMIT's, with the deviations of `methods.memit`.
"""

from dataclasses import replace

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.language.methods.memit import MEMIT

RLSEDIT = replace(MEMIT, method="rlsedit", ridge=0.01)


def rlsedit(
    layer: object,
    keys: Tensor,
    values: Tensor,
    anchors: Tensor,
    *,
    ridge: float = 1.0,
    weight: float = 1.0,
) -> rk.LowRank:
    """The edit of one projection, with anchors of one's own that keep what they give.

    Args:
        layer: as `rankedit.solve_edit` takes it.
        keys: `[n, in]`.
        values: `[n, out]`.
        anchors: K₀ `[m, in]`.
        ridge: λ, positive.
        weight: μ, positive.
    """
    rows = torch.cat([keys, anchors.to(keys)])
    wanted = torch.cat([values, rk.linear_output(layer, anchors).to(values)])
    softness = torch.ones(len(rows), dtype=torch.float64, device=keys.device)
    softness[len(keys) :] = 1 / weight
    metric = rk.Metric.identity(keys.shape[1], ridge)
    return rk.solve_edit(layer, rows, wanted, metric, softness=softness)
