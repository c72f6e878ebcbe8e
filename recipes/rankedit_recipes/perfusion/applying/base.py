"""Which model a concept belongs to, whatever precision its weights are in."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

import rankedit as rk
from rankedit_recipes.diffusion.parts import Parts

# Relative to their size, weights in bfloat16 and in float32 differ by 0.0017, in float16 by 0.0002;
# the estimate is off by 12 %. A copy that was fine-tuned for 500 steps differed by 0.044.
ROUNDING = 0.004


def base_of(parts: Parts) -> str:
    """Fingerprint of all projections that a concept acts on."""
    digest = hashlib.sha256()
    for name, module in parts.projections.items():
        digest.update(f"{name} {rk.fingerprint(module)}\n".encode())
    # 64 bits tell models apart; it is no protection against forgery.
    return digest.hexdigest()[:16]


def sketch_of(parts: Parts) -> str:
    """Sketch of all projections that a concept acts on; empty if there can be none."""
    try:
        made = rk.Sketch.of(parts.projections)
    except rk.ProjectionError:  # it only spares a warning: without it fingerprints decide
        return ""
    return made.text() if made else ""


def same_weights(one: str, other: str) -> bool:
    """Whether two sketches are of the same weights, each in a precision of its own."""
    return bool(one and other) and rk.Sketch.parse(one).distance(rk.Sketch.parse(other)) < ROUNDING


def warn_of_lost(parts: Parts, words: Sequence[str]) -> None:
    """Tell of words that the pipeline takes out of prompts."""
    lost = parts.text.lost(words)
    if lost:
        # PixArt and others clean captions, if ftfy and bs4 are installed (diffusers 0.42).
        warnings.warn(
            f"apply: this pipeline takes {' and '.join(lost)} out of prompts before it encodes "
            "them, so that pictures will not have the concept; rename it to a word without "
            "brackets (Concept.renamed), or call the pipeline with clean_caption=False.",
            rk.RankeditWarning,
            stacklevel=3,
        )
