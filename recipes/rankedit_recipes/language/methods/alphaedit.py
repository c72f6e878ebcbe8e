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
* Both are wider than published: ten times the L2 and directions with up to a tenth of the energy.
  On SmolLM2-135M-Instruct (24 facts together) L2 of 0.01 and 2 % of the energy moved unrelated text
  by 17 thousandths of a nat and blocks by 0.3 to 0.37 of their norm, these by 5 and 0.16 to 0.21,
  with the same efficacy and neighbourhood and 2 points of paraphrase less; MEMIT moves it by 4.
* Those of `methods.memit` that concern contexts, blocks and the learning rate.
"""

from dataclasses import replace

from rankedit_recipes.language.methods.memit import MEMIT

ALPHAEDIT = replace(MEMIT, method="alphaedit", cost="null space", weight=0.1, energy=0.1)
