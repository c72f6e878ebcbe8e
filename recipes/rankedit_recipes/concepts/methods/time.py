"""TIME: editing implicit assumptions. Orgad et al., ICCV 2023, arXiv 2303.08084.

Equation 4: `W = (λW + Σ_i v_i c_iᵀ)(λI + Σ_i c_i c_iᵀ)⁻¹` over all tokens c_i of the source prompt,
padding included, with v_i = W c*_i of the aligned tokens of the destination prompt: softness 1
under the metric `λI`.

Defaults are the paper's: λ = 0.1, key and value projections.

Deviations:

* The prompts are the contexts of this recipe, in place of the paper's four augmentations.
* What is held enters as in UCE; the paper has no such term, and without `hold` there is none here.
* Where source and destination have different numbers of tokens, words are aligned at their last
  token, and what follows with what follows; erasing to nothing aligns the word with what stands
  before it.
"""

from rankedit_recipes.concepts.settings import Settings

TIME = Settings(method="time", cost="identity", weight=0.1, tokens="all", contexts=True)
