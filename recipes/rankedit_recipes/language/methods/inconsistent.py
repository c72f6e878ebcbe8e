"""ROME with the fault of its published code: two different keys in one formula. For comparison.

The paper (Meng et al., arXiv 2202.05262, equation 2) has one key k* throughout. The code has the
mean over contexts in `u = C⁻¹k*`, and the bare prompt's key k₀ in the denominator: the change is
`r u / u·k₀`, which is far too large where k₀ is far from the mean, and makes models collapse (Yang
et al., arXiv 2406.11263; Gupta et al., arXiv 2403.07175).

Deviations: those of `methods.rome`, of which this one is not part.
"""

from dataclasses import replace

from torch import Tensor

import rankedit as rk
from rankedit_recipes.language.methods.rome import ROME

INCONSISTENT = replace(ROME, method="rome (inconsistent key)", consistent=False)


def inconsistent(key: Tensor, bare: Tensor, lacking: Tensor, metric: rk.Metric) -> rk.LowRank:
    """The edit of one fact, `r u / u·k₀`; no solve of anybody's is asked.

    Args:
        key: `[1, in]`, the mean over contexts, of which `u = A k`.
        bare: `[1, in]`, k₀.
        lacking: `[1, out]`, r.
        metric: what a change costs.
    """
    image = metric.guarded.solve(key)
    overlap = image @ bare.double().T
    return rk.LowRank(lacking.double().T / overlap, image)
