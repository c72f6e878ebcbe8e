"""Denoisers whose weights must stay what they are while concepts are in."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from rankedit_recipes.perfusion.errors import PerfusionError

# It makes one layer of the weights of several (diffusers 0.42), and calls no longer those that have
# the edits: pictures would lose the concepts in silence.
_FUSING = {
    "fuse_qkv_projections": "projections cannot be fused while {words} are in the pipeline, for "
    "the fused ones would not have the concepts; leave them unfused, or take the concepts out "
    "first: perfusion.unload(pipe)."
}
# What a concept takes from its key's output is what the weights gave when it came in: with another
# LoRA, or another scale of one, that would be too much or too little. `fuse_lora` changes nothing.
_ADAPTERS = dict.fromkeys(
    (
        "load_lora_adapter", "add_adapter", "unload_lora", "delete_adapters", "set_adapters",
        "set_adapter", "disable_lora", "enable_lora", "disable_adapters", "enable_adapters",
    ),
    "LoRAs of the denoiser cannot be loaded, changed or taken out while {words} are in the "
    "pipeline, for the concepts are fitted to the weights that were there; take the concepts out "
    "first, and put them in again afterwards: perfusion.unload(pipe).",
)  # fmt: skip


class Kept:
    """Refuses what would change the weights under concepts, until it is removed.

    A pipeline's own calls, such as `load_lora_weights`, go through those of its denoiser.

    Args:
        denoiser: without the wrapper of a compiler.
        words: of the concepts.
    """

    def __init__(self, denoiser: nn.Module, words: Sequence[str]) -> None:
        self._denoiser = denoiser
        said = ", ".join(words)
        self._refused = {
            name: functools.partial(_refuse, why.format(words=said))
            for name, why in {**_FUSING, **_ADAPTERS}.items()
            if hasattr(denoiser, name)
        }
        vars(denoiser).update(self._refused)

    def remove(self) -> None:
        """Let them be changed again."""
        for name in self._refused:
            # The instance's attribute hid the class's method.
            vars(self._denoiser).pop(name, None)


def _refuse(why: str, *_: object, **__: object) -> None:
    raise PerfusionError(f"perfusion: {why}")
