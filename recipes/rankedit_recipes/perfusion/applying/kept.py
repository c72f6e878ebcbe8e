"""Denoisers whose weights must stay what they are while concepts are in."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from rankedit_recipes.diffusion.parts import Parts
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
        parts: of the pipeline.
        words: of the concepts.
        fitted: what the concepts are fitted to, beside the text encoders; all the denoiser if None.
    """

    def __init__(
        self, parts: Parts, words: Sequence[str], fitted: Iterable[nn.Module] | None = None
    ) -> None:
        self._denoiser = denoiser = parts.denoiser.plain
        self._said = said = ", ".join(words)
        # With their own hooks, below which the edits lie: wrappers of LoRA libraries.
        read = [denoiser] if fitted is None else list(fitted)
        read += [encoder.model for encoder in parts.text.encoders]
        adapted = any(hasattr(part, "base_layer") for top in read for part in top.modules())
        self._hook = (
            denoiser.register_forward_pre_hook(self._check_scale, with_kwargs=True)
            if adapted
            else None
        )
        self._refused = {
            name: functools.partial(_refuse, why.format(words=said))
            for name, why in {**_FUSING, **_ADAPTERS}.items()
            if hasattr(denoiser, name)
        }
        vars(denoiser).update(self._refused)

    def _check_scale(self, _: nn.Module, __: tuple[object, ...], given: dict[str, Any]) -> None:
        """Refuse a call that scales the LoRAs of layers that concepts were fitted to."""
        for name, value in given.items():
            scale = value.get("scale", 1.0) if isinstance(value, dict) else 1.0
            if name.endswith("attention_kwargs") and scale not in (None, 1):
                _refuse(
                    f"{name}={{'scale': {scale}}} would scale the LoRA of this call, and not "
                    f"{self._said}, which are fitted to the weights with all of it; take the "
                    "concepts out, set the LoRA's scale with pipe.set_adapters, and put them in "
                    "again."
                )

    def remove(self) -> None:
        """Let them be changed again."""
        if self._hook is not None:
            self._hook.remove()
        for name in self._refused:
            # The instance's attribute hid the class's method.
            vars(self._denoiser).pop(name, None)


def _refuse(why: str, *_: object, **__: object) -> None:
    raise PerfusionError(f"perfusion: {why}")
