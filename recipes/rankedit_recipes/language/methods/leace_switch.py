"""LEACE-Switch: one concept in the place of another. Gaintseva et al., arXiv 2605.05220.

Of all affine maps of the output that make its cross-covariance with a concept z what is wanted, T,
the one that changes it least: the one equation with M = Σ_xx, K = Σ_zx, S = 0 and R = T − Σ_zx Wᵀ.
T = 0 erases (LEACE, Belrose et al., arXiv 2306.03819); what another concept's cross-covariance is
puts that concept in its place. For W = I and one concept it is

    r(x) = x + (x − E x) Σ_xx⁻¹ Σ_xz (Σ_zx Σ_xx⁻¹ Σ_xz)⁻¹ (T − Σ_zx)

Deviations: folded into the weight. Its bias, which keeps the output's mean, is `−E[x] ΔWᵀ` and the
caller's to add; with `keep_mean` the mean is held by the edit, as a constraint more. Σ_xx has
rankedit's ridge. Derived from the paper's problem, not copied from its theorem.
"""

from collections.abc import Sequence

from torch import Tensor

import rankedit as rk


def leace_switch(
    layer: object,
    cross: rk.CrossCovariance,
    moment: rk.SecondMoment,
    *,
    source: Sequence[int],
    target: Sequence[int],
    ridge: float | None = None,
    keep_mean: bool = False,
) -> rk.LowRank:
    """The edit after which concepts vary the output as others do.

    Args:
        layer: as `rankedit.solve_edit` takes it.
        cross: of what the layer reads with labels, one number for each concept.
        moment: of the same vectors.
        source: concepts to change; those that are in neither list are left as they come.
        target: as many, in whose way they are to vary; the same concepts in another order swap.
        ridge: see `rankedit.Metric.from_moment`.
        keep_mean: whether the output's mean must not move.
    """
    keys: Tensor = cross.matrix[list(source)]
    values = rk.linear_output(layer, cross.matrix[list(target)])
    metric = rk.Metric.from_moment(moment, ridge=ridge, centred=True)
    hold = moment.mean[None] if keep_mean else None
    return rk.solve_edit(layer, keys, values, metric, hold=hold)
