"""AlphaEdit: MEMIT in the directions that the corpus hardly uses. Fang et al., arXiv 2410.02355.

Equation 12: `Δ = R K₁ᵀ P (K_p K_pᵀ P + K₁ K₁ᵀ P + L2·I)⁻¹`, where P projects onto the eigenvectors
of C with eigenvalues near zero, and K_p are the keys of earlier edits: softness 1 under the metric
`L2·I` in the null space and an infinite cost outside of it. rankedit solves it in symmetric form,
which equals the published one (5e-15), with the earlier keys in its ledger.

Defaults: blocks, contexts, residual shares and the search are MEMIT's, as in the published code.

Deviations:

* The null space is cut by a share of the corpus's energy, not at an absolute eigenvalue (published:
  0.02), which says nothing about a model with other units; scaling what the projection reads by
  100 must not change an edit.
* L2 is given in units of tr(C), the mean squared length of what the projection reads (published:
  10, absolute), and is that of five blocks; fewer use less.
* Those of `methods.memit` that concern contexts, blocks and the learning rate.
"""

from dataclasses import replace

from rankedit_recipes.language.methods.memit import MEMIT

ALPHAEDIT = replace(MEMIT, method="alphaedit", cost="null space", weight=0.01, energy=0.02)
