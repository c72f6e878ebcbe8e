"""Ours: the cheapest change on the captions that a model is used with.

`minimise E‖x Mᵀ‖² + (1/s) Σ_concepts mean_j ‖k_j Mᵀ − (g_j − k_j)‖²`, with the expectation over the
tokens x of captions (the covariance, in place of UCE's `λI`), and as keys all tokens that carry the
concept in sixteen contexts: the word's own and those behind it, found by what changes when the word
does. No concept has to be named to be kept; those that are held do not move at all.

What becomes nothing acts like the mean of its eight nearest words in the same place, and half as
far again beyond them: a sentence without the word would move every token behind it to another
position, which says nothing of the concept and changes every picture, and of a mere mean a model
still makes the concept by chance.

A concept's keys are as many as its contexts have tokens; the map that they make is cut to the 24
directions for each concept with the largest effect on the captions, the file's size with it.
"""

from rankedit_recipes.concepts.settings import Settings

COVARIANCE = Settings(
    method="covariance", cost="covariance", weight=1.0, ridge=0.5, softness=0.01, balanced=True,
    tokens="carried", contexts=True, keep="hard", rank=24, neighbours=8, beyond=0.5,
)  # fmt: skip
