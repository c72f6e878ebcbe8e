"""What stands before the subjects is run once, and nothing that is found changes by it."""

import pytest
import torch
from rankedit_recipes.language.model.beginnings import continued
from rankedit_recipes.language.model.running import logits_at
from rankedit_recipes.language.model.tokens import Batch, targets_of, tokenised
from rankedit_recipes.language.searching import values
from rankedit_recipes.language.searching.values import find_values

from tests.language.models import family, quick, some_requests, tokenizer

PREFIXES = ("A day is gone. ", "The tin is on, is it not? ")
PLAIN = ["gpt2", "gptj", "gpt_neox", "opt", "llama", "qwen3", "phi", "falcon"]
# Some of their layers see a window of the latest tokens only.
WINDOWS = ["gemma2", "gemma3"]


def rows_of(requests):
    starts = ("", *PREFIXES)
    texts = tokenised(tokenizer(), [(r, s) for r in requests for s in starts], targets=True)
    places, _ = targets_of(texts)
    return Batch.of(texts), places


@pytest.mark.parametrize("name", [*PLAIN, *WINDOWS])
def test_rows_from_the_subject_on_say_what_whole_rows_say(name):
    model, _ = family(name)
    batch, places = rows_of(some_requests(4))
    short, known = continued(model, batch, places)
    assert short.ids.shape[1] < batch.ids.shape[1] // 2
    with torch.no_grad():
        whole = logits_at(model, batch, places)
        torch.testing.assert_close(known, whole)
        found = logits_at(model, short, (places - batch.subjects[:, None]).clamp_min(0))
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4)
        # Some rows, twice: no run changes what the next one is given.
        rows = torch.tensor([7, 2, 2])
        for _ in range(2):
            some = short.chosen(rows)
            part = logits_at(model, some, (places - batch.subjects[:, None]).clamp_min(0)[rows])
            torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-4)


def searched(model, names, requests, monkeypatch, *, whole, **changes):
    from rankedit_recipes.language import find_blocks

    seen = []
    if whole:
        monkeypatch.setattr(values, "continued", lambda *_: None)
    else:
        monkeypatch.undo()
    handle = model.get_submodule(names[1]).register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].shape[:-1].numel())
    )
    found = find_values(
        model, tokenizer(), requests, find_blocks(model)[1], quick("rome", **changes),
        prefixes=PREFIXES, progress=False,
    )  # fmt: skip
    handle.remove()
    return found, seen[-1]


@pytest.mark.parametrize("name", [*PLAIN, *WINDOWS])
def test_a_search_finds_the_same(name, monkeypatch):
    model, names = family(name)
    requests = some_requests(3)
    short, few = searched(model, names, requests, monkeypatch, whole=False, steps=5)
    whole, many = searched(model, names, requests, monkeypatch, whole=True, steps=5)
    torch.testing.assert_close(short.shifts, whole.shifts, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(short.after, whole.after, rtol=1e-4, atol=1e-4)
    assert float(whole.shifts.norm()) > 0
    assert few < many / 2


def test_requests_that_are_done_leave_short_rows_too(monkeypatch):
    model, names = family("llama")
    requests = some_requests(4)
    start, _ = searched(model, names, requests, monkeypatch, whole=False, steps=1)
    limit = {"steps": 6, "stop_below": float(start.before.median())}
    short, _ = searched(model, names, requests, monkeypatch, whole=False, **limit)
    whole, _ = searched(model, names, requests, monkeypatch, whole=True, **limit)
    assert short.reasons == whole.reasons
    assert len(set(short.reasons)) > 1
    torch.testing.assert_close(short.shifts, whole.shifts, rtol=1e-3, atol=1e-4)


def test_half_precision_is_run_from_the_subjects_too(monkeypatch):
    model, names = family("llama")
    model = model.bfloat16()
    _, few = searched(model, names, some_requests(2), monkeypatch, whole=False, steps=2)
    _, many = searched(model, names, some_requests(2), monkeypatch, whole=True, steps=2)
    assert few < many / 2


def test_what_gives_something_else_from_a_cache_is_run_whole(monkeypatch):
    model, names = family("llama")
    forward = model.model.forward

    def counting(*args, past_key_values=None, **kwargs):
        # As a model would whose positions start anew behind a cache.
        if past_key_values is not None:
            kwargs["position_ids"] = kwargs["position_ids"] * 0
        return forward(*args, past_key_values=past_key_values, **kwargs)

    requests = some_requests(2)
    expected, many = searched(model, names, requests, monkeypatch, whole=True, steps=3)
    model.model.forward = counting
    found, same = searched(model, names, requests, monkeypatch, whole=False, steps=3)
    assert same == many
    torch.testing.assert_close(found.shifts, expected.shifts, rtol=1e-4, atol=1e-5)


def test_subjects_at_the_very_start_have_nothing_before_them():
    model, _ = family("gpt2")
    batch = Batch(
        torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3).long(), torch.zeros(2).long()
    )
    assert continued(model, batch, torch.tensor([[1], [2]])) is None
