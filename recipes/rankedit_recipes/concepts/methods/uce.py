"""UCE: unified concept editing. Gandikota et al., WACV 2024, arXiv 2308.14761.

Equation 7: `W = (Σ_e v kᵀ + Σ_p W r rᵀ + λW)(Σ_e k kᵀ + Σ_p r rᵀ + λI)⁻¹`, with v = W g what the
erased concept's encoding k is to give, and r the encodings of preserved concepts: softness 1 under
the metric `λI + Σ_p r rᵀ`.

Defaults are those of the authors' code since 2025: λ = 0.5, weights 1, one encoding for each
concept, that of the last token of its word alone in a prompt; "nothing" is the last token before
the end of the empty prompt.

Deviations: none for text encoders whose prompts begin with a token of their own, as CLIP's do. For
others (T5) the empty prompt has its end alone, which is taken then. The code of 2023 took all
tokens from the word's last one on.
"""

from rankedit_recipes.concepts.settings import Settings

UCE = Settings(method="uce", cost="identity", weight=0.5)
