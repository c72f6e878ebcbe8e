"""MEMIT: thousands of facts in several projections. Meng et al., arXiv 2210.07229.

Equation 14: `ΔW = R Kᵀ (λC + K Kᵀ)⁻¹` for the keys K of all facts and what they lack, R: softness 1
under the metric λC. Equation 16 and algorithm 1: the residual stream z behind the last edited block
is found by gradient; each block l takes over `(z − h)/(L − l + 1)` of what lacks still. Keys are
means over the bare prompt, with one half of the weight, and 5 sentences that the model writes.

Defaults are those of the published code: Adam, divergence 0.0625, clamp 0.75 lengths of the
residual stream.

Deviations:

* λ is given in vectors per input width: `weight·d`. The paper's 15,000 (GPT-J, d = 16,384) and
  20,000 (GPT-2 XL, d = 6,400) are 0.9 and 3.1. It is the λ of five blocks; fewer use less.
* The search sees the shift as the edit will give it to each context; see `methods.rome`.
* What lacks is measured over the same contexts as the keys; in the code after the bare prompt.
* Below the last block, what a lower block takes over is put in for each fact alone; see
  `rankedit_recipes.language.searching.spreading`. A stream then equals one batch, to rounding.
* Learning rate and decay are relative to the residual stream's length (published: absolute 0.5).
* At most 16 steps of 0.2, not 25 of 0.1: on a real model the same scores in two thirds of the time
  (docs/decisions/blocks-by-measurement.md).
* The blocks are those of the lower half that tell subjects apart best (published: those up to 17 of
  48, 8 of 28), and their number is a sixth of all, from 1 to 5 (published: 5 of 48, 6 of 28).
"""

from rankedit_recipes.language.settings import Settings

MEMIT = Settings(
    method="memit",
    # Between the 0.9 and the 3.1 of the paper's two models.
    weight=1.0,
    softness=1.0,
    layers=5,
    contexts=(10,) * 5,
    bare=0.5,
    anchor="stream",
    steps=16,
    learning_rate=0.2,
    clamp=0.75,
    decay=0.01,
)
