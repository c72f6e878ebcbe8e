"""EMMET: many facts in one projection, as equalities. Gupta et al., arXiv 2403.14236.

Equation 8: `ΔW = R (Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹`, the cheapest change under C with which every key gives its
value; ROME for many keys. The published code puts `(sC + bI)⁻¹` for C⁻¹ and adds εI to the Gram
matrix, with ε = 0.1 and s = 1000 (GPT-2 XL) or 1 (GPT-J, Llama 2), which makes it MEMIT with
λ = sε: the identity is tested in `tests/test_methods_table.py`.

Defaults: ε = 0.1 as in the code; one block; keys, values and the search as ROME with MEMIT's
contexts, as in the code.

Deviations: those of `methods.rome` that concern C, the key, the block and the learning rate; s is
given in vectors per input width, `weight·d` (published: 0.16 d for GPT-2 XL).
"""

from dataclasses import replace

from rankedit_recipes.language.methods.rome import ROME

EMMET = replace(
    ROME, method="emmet", weight=0.16, softness=0.1, contexts=(10,) * 5, bare=0.5, steps=25
)
