"""Tracing some places gives what tracing all gives there, and runs no more than it needs."""

import pytest
import torch
from rankedit_recipes import language
from rankedit_recipes.language import LanguageError
from rankedit_recipes.language.evaluating.tracing import PLACES, parts_of, trace

from tests.language.models import family, some_requests, tokenizer


def traced(model, names, **options):
    parts = parts_of(model, names)
    return trace(model, tokenizer(), some_requests(4), parts, progress=False, **options)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("places", [["last subject token"], ["first token behind", "last token"]])
def test_some_places_are_what_all_of_them_have_there(name, places):
    model, names = family(name)
    whole, part = traced(model, names), traced(model, names, places=places)
    assert (part.clean, part.disturbed) == pytest.approx((whole.clean, whole.disturbed))
    chosen = torch.tensor([place in places for place in PLACES])
    for kind, grid in whole.effects.items():
        assert bool(grid[:, chosen].abs().max() > 1e-6)
        torch.testing.assert_close(
            part.effects[kind][:, chosen], grid[:, chosen], rtol=1e-3, atol=5e-8
        )
        assert bool(part.effects[kind][:, ~chosen].isnan().all())


def test_locating_runs_one_row_for_each_block_and_disturbance():
    model, names = family("gpt2")
    requests, rows = some_requests(2), []
    handle = model.transformer.wte.register_forward_hook(
        lambda _m, args, _o: rows.append(len(args[0]))
    )
    found = language.locate(model, tokenizer(), requests, 2, disturbances=5, progress=False)
    handle.remove()
    assert found == traced_best(model, names, requests)
    # Blocks are found first; then each fact runs undisturbed twice, disturbed, and once a block.
    assert rows[-2 * 6 :] == 2 * [1, 5, 1, 5, 5, 5]
    assert len(rows) == 2 + 2 * 6


def traced_best(model, names, requests):
    parts = {"mlp": parts_of(model, names)["mlp"]}
    return trace(model, tokenizer(), requests, parts, progress=False).best(2)


def test_a_place_that_no_subject_has_is_nan():
    model, names = family("gpt2")
    fact = language.Request("The home is {} in", "A", "p")
    found = trace(
        model, tokenizer(), [fact], {"mlp": names}, places=["middle subject tokens"], progress=False
    )
    assert bool(found.effects["mlp"].isnan().all())


@pytest.mark.parametrize("places", [[], ["the end"]])
def test_unknown_places_are_refused(places):
    model, names = family("gpt2")
    with pytest.raises(LanguageError, match="trace: places must be some of first subject token"):
        traced(model, names, places=places)
