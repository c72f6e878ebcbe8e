"""r-ROME: ROME with one key wherever a key stands. Gupta et al., arXiv 2403.07175.

Section 4: the mean key over contexts k* in all of `W' = W + (v* − W k*) uᵀ / (k*ᵀ u)`, `u = C⁻¹k*`,
and v* what the projection gives for k* plus the shift found. The rest is ROME.

In this engine keys are consistent by construction, so that ROME is r-ROME; it has a name of its own
so that tables can have both. The fault that it mends is `methods.inconsistent`.

Deviations: those of `methods.rome` that concern C, the search, the block, the learning rate and
several facts.
"""

from dataclasses import replace

from rankedit_recipes.language.methods.rome import ROME

R_ROME = replace(ROME, method="r-rome")
