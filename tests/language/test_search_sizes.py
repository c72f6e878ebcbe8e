"""What a search is said to take beforehand is what it takes: its rows, and what gradients keep."""

from dataclasses import replace

import pytest
import torch
from rankedit_recipes.language.commands.fitting import model_widths
from rankedit_recipes.language.commands.outlines import measured_outline
from rankedit_recipes.language.methods import METHODS
from rankedit_recipes.language.model.layers import all_blocks
from rankedit_recipes.language.searching import sizes as planned
from rankedit_recipes.language.searching import values

from tests.language.models import LLAMA, build, some_requests, tokenizer


def model_of(**changes):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    return build("Llama", {**LLAMA, **heads, "num_hidden_layers": 4, **changes})


def prefixes_of(length, count):
    """Texts of so many tokens, which stand before a prompt as one word does."""
    text = " t" * length
    assert len(tokenizer()(text)["input_ids"]) == length
    return [text] * count


def searched(model, block, settings, requests, prefixes, monkeypatch):
    """The searches that are made, and bytes kept for the gradient of the first step of each."""
    made, kept = [], []
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    original = values._Search._loss

    def counted(search):
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = original(search)
        if search not in made:
            made.append(search)
            kept.append(sum(size for at, size in saved.items() if at not in weights))
        return result

    monkeypatch.setattr(values._Search, "_loss", counted)
    values.find_values(
        model, tokenizer(), requests, block, settings, prefixes=prefixes, progress=False
    )
    return made, kept


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_size": 64, "intermediate_size": 256},
        {"intermediate_size": 512},
        {"num_hidden_layers": 7},
        {"vocab_size": 4000},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [3, 12])
def test_what_is_kept_for_gradients_is_what_is_said(monkeypatch, changes, length):
    model, requests = model_of(**changes), some_requests(6)
    settings = replace(METHODS["rome"], steps=1, contexts=(length,) * 3)
    block = all_blocks(model)[1]
    (search,), (kept,) = searched(
        model, block, settings, requests, prefixes_of(length, 3), monkeypatch
    )
    sizes = planned.sizes_of(tokenizer(), requests, settings)
    assert sizes.rows == len(search._batch.ids) == 6 * 5
    assert sizes.behind == search._batch.ids.shape[1]
    assert sizes.places == search._places.shape[1]
    widths = model_widths(model, measured_outline(model), block)
    assert widths.above == model.config.num_hidden_layers - 2
    assert 4 * planned.saved_numbers(sizes, widths) == pytest.approx(kept, rel=0.2)
    # The whole is more than what gradients keep, and not another size altogether.
    assert 1.2 < planned.search_bytes(sizes, widths) / kept < 6


@pytest.mark.parametrize("tokens", [100, 300, 10_000])
def test_the_largest_chunk_is_planned(monkeypatch, tokens):
    model, requests = model_of(), some_requests(6)
    settings = replace(METHODS["rome"], steps=1, contexts=(5, 5), tokens=tokens)
    block = all_blocks(model)[1]
    made, _ = searched(model, block, settings, requests, prefixes_of(5, 2), monkeypatch)
    sizes = planned.sizes_of(tokenizer(), requests, settings)
    assert sizes.rows in [len(search._batch.ids) for search in made]
    assert sizes.rows * sizes.whole <= max(tokens, 4 * sizes.whole)


def test_heads_that_share_keys_and_values_keep_less():
    model = model_of(num_key_value_heads=2)
    widths = model_widths(model, measured_outline(model), all_blocks(model)[1])
    assert widths.kept == 2 * 2 * 8
    assert widths.stream == 32
