"""Whether a whole model can be written with edits in its weights, asked before the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError


def check_fusable(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse a model whose projections take no edit, or that transformers does not save.

    Args:
        model: as it will be edited.
        names: of the projections.

    Raises:
        LanguageError: says what stands against it.
    """
    quantizer: Any = getattr(model, "hf_quantizer", None)
    reason = ""
    if not callable(getattr(model, "save_pretrained", None)):
        reason = f"a {type(model).__name__} has no save_pretrained"
    elif quantizer is not None and not quantizer.is_serializable():
        # As transformers 5.23 asks itself, by then with everything else done.
        config: Any = getattr(model, "config", None)
        kind = getattr(getattr(config, "quantization_config", None), "quant_method", "unknown")
        reason = f"transformers does not save models quantised by {kind!s}"
    if not reason:
        reason = _what_bars_edits(model, names)
    if reason:
        raise LanguageError(
            f"language: the whole model cannot be written with edits in its weights: {reason}; "
            "leave --fuse out and attach the file of edits, or open a model in float32 or bfloat16."
        )


def _what_bars_edits(model: nn.Module, names: Sequence[str]) -> str:
    nothing = {}
    for name in names:
        view = rk.Projection(model.get_submodule(name))
        nothing[name] = rk.LowRank(
            torch.zeros(view.out_features, 1), torch.zeros(1, view.in_features)
        )
    try:
        # Of zeros, and out again: what can be fused is told by fusing.
        rk.fuse_(model, nothing)
        rk.unfuse_(model)
    except rk.RankeditError as error:
        return str(error)
    return ""
