"""Denoisers whose projections must not be fused while concepts are in."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from rankedit_recipes.perfusion.errors import PerfusionError

_FUSE = "fuse_qkv_projections"


class Unfused:
    """Refuses `fuse_qkv_projections` of a denoiser until it is removed.

    It makes one layer of the weights of several (diffusers 0.42), and calls no longer those that
    have the edits: pictures would lose the concepts in silence.

    Args:
        denoiser: without the wrapper of a compiler.
        words: of the concepts.
    """

    def __init__(self, denoiser: nn.Module, words: Sequence[str]) -> None:
        self._denoiser = denoiser
        if hasattr(denoiser, _FUSE):
            # The pipeline's own call goes through the denoiser's.
            vars(denoiser)[_FUSE] = functools.partial(_refuse, tuple(words))

    def remove(self) -> None:
        """Let it be fused again."""
        # The instance's attribute hid the class's method.
        vars(self._denoiser).pop(_FUSE, None)


def _refuse(words: Sequence[str], *_: object, **__: object) -> None:
    raise PerfusionError(
        f"perfusion: projections cannot be fused while {', '.join(words)} are in the pipeline, for "
        "the fused ones would not have the concepts; leave them unfused, or take the concepts out "
        "first: perfusion.unload(pipe)."
    )
