"""SPEED: scalable, precise and efficient concept erasure. Li et al., ICLR 2026, arXiv 2503.07392.

`Δ = W (E_at − E_tt) P (I − M K₂ (K₂ᵀ P M K₂)⁻¹ K₂ᵀ P) M`, `M = (E_tt P + s I)⁻¹`, with P the null
space of what is to be retained and K₂ the encodings of the empty prompt (its beginning, and three
centres of what fills it up): softness 1 under `s I` on that null space, with `K₂ Δᵀ = 0` exactly.
The retained concepts are those that the erasure would move more than the mean (influence-based
filtering). Value projections alone, the last token of the word alone in a prompt, s = 1.

Deviations:

* Retained are the concepts that are held; none is made up by adding noise in the weights' smallest
  directions (directed augmentation), which would need a basis for each projection.
* The null space is cut relative to the largest eigenvalue (published: 0.1, absolute).
* Influence is measured on encodings, which all projections share, and not on each one's output.
* The public code adds a ridge inside the inverse of `K₂ᵀ P M K₂`; here the equality is exact.
"""

from rankedit_recipes.concepts.settings import Settings

SPEED = Settings(
    method="speed", cost="null space", weight=1.0, influence=True, anchored=True,
    projections="values",
)  # fmt: skip
