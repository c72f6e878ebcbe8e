"""Causal traces on models in which it is known where the answer passes."""

from dataclasses import replace

import pytest
import torch
from rankedit_recipes.language import METHODS, edit, locate
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.tracing import PLACES, Trace, parts_of, trace
from rankedit_recipes.language.requests import Request

from tests.language.models import family
from tests.language.models import tokenizer as byte_tokenizer
from tests.language_evaluation.toys import tiny_gpt2, tokenizer

DOWNS = ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]
FACT = Request("what does {} play ? the", "anna and ben", "piano")


def test_parts_are_found_by_structure():
    model = tiny_gpt2(tokenizer())
    assert parts_of(model, DOWNS) == {
        "block": ["transformer.h.0", "transformer.h.1"],
        "mlp": DOWNS,
        "attention": ["transformer.h.0.attn", "transformer.h.1.attn"],
    }
    with pytest.raises(LanguageError, match="parts_of: 'lm_head' is in no list of layers"):
        parts_of(model, ["lm_head"])


def test_restoring_the_last_block_at_the_last_token_brings_everything_back():
    tok = tokenizer()
    model = tiny_gpt2(tok)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = trace(model, tok, [FACT], parts_of(model, DOWNS), noise=30, progress=False)
    everything = found.clean - found.disturbed
    assert abs(everything) > 1e-4
    last = PLACES.index("last token")
    assert float(found.effects["block"][1, last]) == pytest.approx(everything, rel=1e-3)
    # The last block's output at any other token is read by nothing.
    others = [i for i in range(len(PLACES)) if i != last]
    assert float(found.effects["block"][1, others].abs().max()) < 1e-7
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.transformer.h[0]._forward_hooks


def test_the_clean_chance_is_the_model_s_own():
    tok = tokenizer()
    model = tiny_gpt2(tok)
    found = trace(model, tok, [FACT], {"mlp": DOWNS}, progress=False)
    ids = torch.tensor([tok(FACT.text)["input_ids"]])
    answer = tok.convert_tokens_to_ids("piano")
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, -1].softmax(-1)[answer]
    assert found.clean == pytest.approx(float(expected), rel=1e-5)
    assert found.facts == 1


def test_no_noise_leaves_nothing_to_bring_back():
    tok = tokenizer()
    found = trace(tiny_gpt2(tok), tok, [FACT], {"mlp": DOWNS}, noise=0, progress=False)
    assert found.disturbed == pytest.approx(found.clean, rel=1e-5)
    assert float(found.effects["mlp"].abs().max()) < 1e-6


def test_the_strongest_place_is_named():
    tok = tokenizer()
    found = trace(tiny_gpt2(tok), tok, [FACT, FACT], {"mlp": DOWNS}, progress=False)
    layer, place = found.strongest()
    assert found.effects["mlp"][layer, PLACES.index(place)] == found.effects["mlp"].max()


def test_the_best_blocks_are_neighbours_by_what_comes_back_at_the_subject():
    effects = torch.zeros(5, len(PLACES))
    effects[:, 2] = torch.tensor([0.1, 0.5, 0.0, 0.4, 0.3])
    effects[0, 5] = 9.0  # at the last token: no matter
    found = Trace({"mlp": effects}, 0.9, 0.1, 3)
    assert found.best() == [1]
    assert found.best(2) == [3, 4]
    assert found.best(3) == [1, 2, 3]
    assert found.best(5) == [0, 1, 2, 3, 4]
    for count in (0, 6):
        with pytest.raises(LanguageError, match=r"Trace.best: count must be from 1 to 5"):
            found.best(count)


def only_writer(index):
    """A model in which one MLP alone writes."""
    tok = tokenizer()
    model = tiny_gpt2(tok, layers=4, seed=1)
    for number, block in enumerate(model.transformer.h):
        for parameter in block.mlp.c_proj.parameters():
            parameter.data *= 40.0 if number == index else 1e-4
    return model, tok


@pytest.mark.parametrize("index", [0, 2])
def test_the_block_is_located_that_makes_the_answer(index):
    model, tok = only_writer(index)
    ends = Request("what does {}", "anna and ben", "piano")  # the subject's last token is the last
    assert locate(model, tok, [ends], own=True, noise=30, progress=False) == [index]
    # Whatever the targets, the model's own answers are the same.
    other = replace(ends, target="violin")
    assert locate(model, tok, [other], own=True, noise=30, progress=False) == [index]
    again = locate(model, tok, [other], own=True, progress=False)
    quick = replace(METHODS["rome"], cost="identity", steps=2)
    edited = edit(model, tok, [other], quick, statistics=None, layers="traced", prefixes=[],
                  progress=False)  # fmt: skip
    assert list(edited.edits) == [f"transformer.h.{again[0]}.mlp.c_proj"]


def test_its_own_answer_is_the_likeliest_token():
    tok = tokenizer()
    model = tiny_gpt2(tok)
    found = trace(model, tok, [FACT], {"mlp": DOWNS}, own=True, progress=False)
    ids = torch.tensor([tok(FACT.text)["input_ids"]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, -1].softmax(-1).max()
    assert found.clean == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["opt", "qwen2_moe"])
def test_mlps_that_read_all_tokens_as_one_list(name):
    model, names = family(name)
    fact = Request("{} plays the", "Miles Davis", "piano")
    found = trace(model, byte_tokenizer(), [fact], {"mlp": names}, noise=0, progress=False)
    assert float(found.effects["mlp"].nan_to_num(0).abs().max()) < 1e-6
    again = trace(model, byte_tokenizer(), [fact], {"mlp": names}, noise=3, progress=False)
    assert float(again.effects["mlp"].nan_to_num(0).abs().max()) > 1e-6


def test_no_facts_are_refused():
    tok = tokenizer()
    with pytest.raises(LanguageError, match="trace: at least one fact is expected"):
        trace(tiny_gpt2(tok), tok, [], {"mlp": DOWNS}, progress=False)
