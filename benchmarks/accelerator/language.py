"""The search for a fact's value in a model of Llama-8B's widths with four blocks."""

from __future__ import annotations

import copy
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


def _by_hand(model: torch.nn.Module, found: language.Edited) -> torch.Tensor:
    """ROME's equation for the key and the value that were found, dense, in float64.

    `ΔW = r k C⁻¹ / (k C⁻¹ kᵀ)`, with C of what a hook of our own sees on the same texts.
    """
    from tests.language.models import TEXTS, tokenizer

    seen: list[torch.Tensor] = []
    layer = model.get_submodule(NAME)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    with torch.no_grad():
        for text in TEXTS:
            model(input_ids=torch.tensor([tokenizer()(text)["input_ids"]]))
    handle.remove()
    read = torch.cat(seen)
    key, lacking = (part[NAME].cpu().double() for part in (found.facts.keys, found.facts.lacking))
    image = torch.linalg.lstsq(read.T @ read / len(read), key.T, driver="gelsd").solution.T
    return lacking.T @ image / float((image * key).sum())


def _chance(model: torch.nn.Module, change: torch.Tensor) -> float:
    """Log-probability of the fact's first token, with a change of the weight itself."""
    from tests.language.models import some_requests, tokenizer

    (request,), tok = some_requests(1), tokenizer()
    whole = tok(f"{request.text} {request.target}")["input_ids"]
    prompt = tok(request.text)["input_ids"]
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_submodule(NAME).weight += change.to(torch.float32)
        logits = changed(input_ids=torch.tensor([whole])).logits[0, len(prompt) - 1]
    return float(logits.log_softmax(-1)[whole[len(prompt)]])


def _search(place: Place, dtype: str) -> Row:
    model = model_of(place)
    plain = None if dtype != "float32" else copy.deepcopy(model)
    model.to(place.device, getattr(torch, dtype))
    place.settle()
    start = time.perf_counter()
    found = _edited(model)
    place.settle()
    row: Row = {"seconds": round(time.perf_counter() - start, 3)}
    if plain is not None:
        # The processor's own search would be the same code: the equation is asked, and the model
        # with the edit in its weight, whether the fact became likelier.
        delta = found.edits[NAME].to(device="cpu").delta()
        error = check_close("an edit of a fact", delta, _by_hand(plain, found), 5e-2)
        row["error"] = f"{error:.1g}"
        before, after = (_chance(plain, change) for change in (0 * delta, delta))
        if not after > before:
            raise SystemExit(f"accelerator: the fact's chance went from {before} to {after}")
    if place.cuda:
        row["peak GB"] = round(torch.cuda.max_memory_allocated(place.device) / 1e9, 2)
    return row
