"""The search for a fact's value in a model of Llama-8B's widths with four blocks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rankedit_recipes import language

from accelerator.kept import Place, Row, check_close

NAME = "model.layers.1.mlp.down_proj"


def units(place: Place) -> dict[str, Callable[[], Row]]:
    """One for each precision of the model."""
    dtypes = ("float32",) if place.small else ("float32", "bfloat16")
    return {f"one fact, {dtype}": lambda d=dtype: _search(place, d) for dtype in dtypes}


def model_of(place: Place) -> torch.nn.Module:
    """Llama with its widths, four blocks, and the vocabulary of a small tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.language.models import COMMON

    width, inner, heads, keys = (64, 160, 4, 2) if place.small else (4096, 14336, 32, 8)
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads}
    config = LlamaConfig(**COMMON, **sizes, num_hidden_layers=4, num_key_value_heads=keys,
                         max_position_embeddings=256)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _edited(model: torch.nn.Module) -> language.Edited:
    from tests.language.models import TEXTS, some_requests, tokenizer

    tok = tokenizer()
    statistics = language.collect_statistics(model, tok, TEXTS, layers=[1], progress=False)
    return language.edit(model, tok, some_requests(1), "rome", statistics=statistics, layers=[1],
                         prefixes=[], progress=False)  # fmt: skip


def _search(place: Place, dtype: str) -> Row:
    model = model_of(place)
    right = None if dtype != "float32" else _edited(model)
    model.to(place.device, getattr(torch, dtype))
    place.settle()
    start = time.perf_counter()
    found = _edited(model)
    place.settle()
    row: Row = {"seconds": round(time.perf_counter() - start, 3)}
    if right is not None:
        delta, other = (each.edits[NAME].to(device="cpu").delta() for each in (found, right))
        # Adam divides by the size of the gradient, so that rounding grows from step to step.
        row["error"] = f"{check_close('an edit of a fact', delta, other, 5e-2):.1g}"
    if place.cuda:
        row["peak GB"] = round(torch.cuda.max_memory_allocated(place.device) / 1e9, 2)
    return row
