"""RECE: reliable and efficient concept erasure. Gong et al., ECCV 2024, arXiv 2407.12383.

UCE, and then in each round equation 10: the encoding that brings the concept back best,
`c' = (λI + Σ_i W_i'ᵀ W_i')⁻¹ Σ_i W_i'ᵀ W_i c` over all edited projections W_i' of the original W_i,
which is erased from W_i' by UCE's formula in its turn.

Defaults: UCE's λ and weights of 0.1, λ of the search 0.1, three rounds, as the paper has for
nudity (two for other unsafe content, one with 0.001 for styles and difficult objects).

Deviations: with several concepts each has its own c' in each round, and they are erased together,
so that their order does not matter; the paper has one concept.
"""

from rankedit_recipes.concepts.settings import Settings

RECE = Settings(
    method="rece", cost="identity", weight=0.1, softness=10.0, preserve=0.1, rounds=3, pullback=0.1
)
