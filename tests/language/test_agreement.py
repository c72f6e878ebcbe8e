"""Facts whose keys depend on what stands before the prompt are found, and named."""

import warnings
from dataclasses import replace

import pytest
import torch
from rankedit_recipes import language
from rankedit_recipes.language import METHODS
from rankedit_recipes.language.searching import agreement
from rankedit_recipes.language.searching.agreement import least_cosines, warn_of_different

import rankedit as rk
from tests.language.models import small, some_requests, tokenizer

NAME = "model.layers.1.mlp.down_proj"


def test_the_least_cosine_is_that_under_the_metric():
    metric = rk.Metric.from_matrix(torch.diag(torch.tensor([1.0, 4.0])).double())
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [3.0, 0.0], [1.0, 2.0], [0.0, 5.0]])
    found = least_cosines(rows, 3, metric)
    # A = diag(1, 1/4): (1, 2) has the length √2; with (1, 0), with (3, 0) and with (0, 5) 1/√2.
    assert found.tolist() == pytest.approx([0.5**0.5, 0.0], abs=1e-6)
    assert least_cosines(rows, 1, metric).tolist() == pytest.approx([1.0] * 6)
    nothing = least_cosines(torch.zeros(2, 2), 2, metric)
    assert nothing.tolist() == [0.0]


def test_the_least_agreeing_requests_are_named_with_remedies():
    requests = some_requests(3)
    cosines = torch.tensor([0.2, 0.9, -0.2])
    with pytest.warns(rk.RankeditWarning) as caught:
        warn_of_different(requests, {NAME: cosines, "other": torch.ones(3)})
    (found,) = caught
    said = str(found.message)
    assert f"in '{NAME}' the keys of 2 of 3 requests depend much on what stands before" in said
    assert f"{requests[2].label!r} (-0.20), {requests[0].label!r} (0.20)" in said
    assert "give more of them (prefixes, or the setting contexts), or edit another block" in said


def test_keys_that_agree_need_no_warning():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_different(some_requests(2), {NAME: torch.tensor([0.3, 1.0])})
    assert not told


def test_an_edit_warns_of_what_its_own_keys_do(monkeypatch):
    model, names, statistics = small("llama")
    method = replace(METHODS["memit"], steps=1)
    options = {"statistics": statistics, "layers": [1], "progress": False,
               "prefixes": ["Ada is the last one. ", "On a day in May, is it so? "]}  # fmt: skip
    requests = some_requests(3)
    monkeypatch.setattr(agreement, "DIFFERENT", -1.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "language: ", rk.RankeditWarning)
        edited = language.edit(model, tokenizer(), requests, method, **options)
    cosines = edited.facts.agreement[names[1]]
    assert cosines.shape == (3,)
    assert bool((cosines < 1).all())
    middle = sorted(cosines.tolist())[1]
    monkeypatch.setattr(agreement, "DIFFERENT", middle)
    worst = requests[int(cosines.argmin())]
    with pytest.warns(rk.RankeditWarning, match="the keys of 1 of 3 requests") as caught:
        language.edit(model, tokenizer(), requests, method, **options)
    assert any(repr(worst.label) in str(found.message) for found in caught)
