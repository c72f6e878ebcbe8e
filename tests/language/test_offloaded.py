"""Models whose weights accelerate keeps elsewhere: edited, and asked, as if they were here."""

from __future__ import annotations

import copy

import torch
from accelerate import cpu_offload
from rankedit_recipes import language

from tests.language.models import TEXTS, small, some_requests, tokenizer


def test_a_model_that_is_loaded_layer_by_layer_is_edited_and_asked_alike():
    tok, (plain, *_) = tokenizer(), small()
    offloaded = copy.deepcopy(plain)
    cpu_offload(offloaded, execution_device="cpu")
    assert next(offloaded.parameters()).device.type == "meta"
    found, said = [], []
    for model in (plain, offloaded):
        statistics = language.collect_statistics(model, tok, TEXTS, layers=[1], progress=False)
        edited = language.edit(
            model, tok, some_requests(1), "rome", statistics=statistics, layers=[1], prefixes=[],
            progress=False,
        )  # fmt: skip
        with edited.attach(model):
            said.append(language.generate(model, tok, ["Miles Davis plays the"], length=4))
        found.append(edited.edits)
    assert found[0].keys() == found[1].keys()
    for name, edit in found[0].items():
        torch.testing.assert_close(edit.delta(), found[1][name].delta())
    assert said[0] == said[1]
