"""ROME: one fact in one projection, as an equality. Meng et al., arXiv 2202.05262.

Equation 2: with `u = C⁻¹k*`, `W' = W + (v* − W k*) uᵀ / (k*ᵀ u)`: the cheapest change under the
second moment C of what the projection reads with which the key k* gives v*. Equation 3: k* is the
mean of what the projection reads at the subject's last token over the bare prompt and sentences
that the model writes. Equation 4: v* is found by gradient, with the divergence of what follows the
subject in "{} is a", weighted with 0.0625, and the decay 0.5.

Defaults are those of the published code: 20 steps of Adam, clamp 4 lengths of the projection's
output, done below 0.05.

Deviations:

* k* is the same in the numerator, in the denominator and in `W k*`, as the paper writes it. The
  published code divides by the bare prompt's key, which makes models collapse (Yang et al., arXiv
  2406.11263; Gupta et al., arXiv 2403.07175); `methods.inconsistent` is that, for comparison.
* v* is what the projection gives for k* plus the shift found; in the code for the bare prompt.
* The search sees the shift as the edit will give it: a context whose key is k gets the part
  `k A k* / k* A k*` of it, not all of it (`through`; False for the published search). Where keys
  differ between contexts, all of it is never given after the bare prompt.
* C has rankedit's ridge, 1e-6 of its mean eigenvalue, and is factorised in float64.
* Learning rate and decay are relative to the projection's output, so that they fit models of any
  width: 0.5 of its root mean square (published: 0.5), and 0.01 per length (published: 0.5 over its
  squared length, which was some tens).
* The block is the one of the lower half that tells subjects apart best (published: 17 of 48, 12 of
  36, 8 of 24, 5 of 28).
* Five sentences of 10 tokens, not 20: on a real model paraphrases gained nothing by the others
  (docs/decisions/blocks-by-measurement.md).
* Several facts are met together: equation 2 with several keys, which is EMMET's equality.
"""

from rankedit_recipes.language.settings import Settings

ROME = Settings(
    method="rome",
    softness=0.0,
    layers=1,
    contexts=(10,) * 5,
    anchor="output",
    steps=20,
    learning_rate=0.5,
    clamp=4.0,
    decay=0.01,
)
