"""MEMIT with ENCORE's early stop and ridge. Gupta et al., arXiv 2502.01636.

Section 4: the search for values ends when the target has been the likeliest token after every
context for two steps ("most-probable early stopping"): values that are pushed further overfit.
Section 5: `ΔW = R Kᵀ (λC + βI + K Kᵀ)⁻¹`: the norm of the change costs something too. Keys of
earlier edits enter the sum as well, which rankedit's ledger does for every method.

Deviations: those of `methods.memit`; β is given in mean eigenvalues of λC (published: 10 or 20 on
15,000 C, whose size the paper does not tell).
"""

from dataclasses import replace

from rankedit_recipes.language.methods.memit import MEMIT

ENCORE = replace(MEMIT, method="encore", ridge=0.01, first_for=2)
