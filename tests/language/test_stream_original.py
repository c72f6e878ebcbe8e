"""Streams ask for the model that they began with, and folders of before are gone on with."""

import re

import pytest
import torch
from rankedit_recipes.language import LanguageError, Request
from rankedit_recipes.language.commands import tasks
from rankedit_recipes.language.commands.remedies import REMEDIES

import rankedit as rk
from tests.language.stand_in import (
    IN,
    NAMES,
    OUT,
    as_version_1,
    begun,
    document_of,
    facts_of,
    files,
    kept,
    kept_of,
    model_of,
    opened,
    refused,
    request,
    state,
    write,
)

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


def fused(stream):
    rk.fuse_(stream.engine.model, stream.edits())


def attached(stream):
    stream.attach()


def hidden(stream):
    """An edit with a dead zone, which no input but its key gets out of."""
    key, value = torch.full((1, IN), 100.0), torch.ones(1, OUT)
    edit = rk.GatedEdit(key, value, rk.Metric.identity(IN), normalised=True, floor=0.999)
    rk.attach(stream.engine.model, {"low": edit})


def adapted(stream):
    """Something that is no edit of this library, and leaves the weights as they are."""

    low = stream.engine.model["low"]
    forward = low.forward
    low.forward = lambda x: forward(x) + 0.01 * x[..., :OUT]


def one_weight(stream):
    stream.engine.model["high"].weight.data[1, 2] *= 1 + 1e-6


def half(stream):
    stream.engine.model["low"].weight.data = stream.engine.model["low"].weight.data.half().float()


@pytest.mark.parametrize("edited", [fused, attached, hidden, adapted, one_weight, half])
@pytest.mark.parametrize("memory", [True, False])
def test_no_change_is_made_to_a_model_that_is_another(tmp_path, edited, memory):
    stream = begun(None if memory else tmp_path)
    model = stream.engine.model
    before = files(tmp_path)
    edited(stream)
    for call, change in (
        ("enter", lambda: stream.enter(facts_of([request(8)]))),
        ("undo", lambda: stream.undo("fact 0")),
        ("undo", stream.undo),
        ("replace", lambda: stream.replace(request(0, "tin"))),
        ("conflicts", lambda: stream.add([request(8)])),
    ):
        with pytest.raises(LanguageError, match=rf"Stream\.{call}: '.*' no longer gives what it"):
            change()
    assert stream.names() == [f"fact {number}" for number in range(4)]
    assert files(tmp_path) == before
    if edited in (fused, attached, hidden):
        rk.unfuse_(model) if edited is fused else rk.detach_all(model)
        assert stream.undo("fact 0") == [request(0)]
        if not memory:
            assert state(stream) == state(opened(tmp_path))


def test_an_edited_model_does_not_open_a_stream(tmp_path):
    stream = begun(tmp_path)
    model, edits = model_of(), stream.edits()
    with (
        rk.attach(model, edits),
        pytest.raises(LanguageError, match=r"Stream\.open: .*\(attached edits: 1"),
    ):
        opened(tmp_path, model=model)
    rk.fuse_(model, edits)
    with pytest.raises(LanguageError, match="a stream of edits of another model"):
        opened(tmp_path, model=model)


def test_engines_of_other_settings_or_texts_are_refused(tmp_path):
    begun(tmp_path)
    with pytest.raises(LanguageError, match="by the method memit, got emmet"):
        opened(tmp_path, method="emmet")
    with pytest.raises(LanguageError, match=r"with the prefixes \[\], got \['One\. '\]"):
        opened(tmp_path, prefixes=("One. ",))


def test_a_request_does_not_take_the_place_of_two_facts(tmp_path):
    stream = begun(tmp_path)
    both = Request("{} plays the", "Subject 1", "tin", name="fact 0")
    with pytest.raises(
        LanguageError, match="'fact 1' has the same subject and relation; undo that"
    ):
        stream.replace(both)
    stream.undo("fact 1")
    assert stream.replace(both) == request(0)
    assert kept(tmp_path) == kept_of([request(2), request(3), both])


def test_facts_that_cannot_be_entered_leave_no_trace(tmp_path):
    stream = begun(tmp_path)
    before, whole = state(stream), files(tmp_path)
    with pytest.raises(rk.SolveError, match="'fact 1' is in the stream already; use replace"):
        stream.enter(facts_of([request(8), request(1)]))
    for name in NAMES:
        for width in (1, 3):
            wrong = facts_of([request(8)])
            wrong.lacking[name] = wrong.lacking[name][:, :width]
            with pytest.raises(rk.ShapeError, match=f"Stream.enter: lacking of '{name}' must"):
                stream.enter(wrong)
        wrong = facts_of([request(8)])
        del wrong.keys[name]
        with pytest.raises(rk.ShapeError, match=f"Stream.enter: keys of '{name}' must"):
            stream.enter(wrong)
        wrong = facts_of([request(8)])
        wrong.keys[name][0, 0] = float("nan")
        with pytest.raises(rk.ShapeError, match="finite"):
            stream.enter(wrong)
    torn = Request("{} plays the", "Subject \ud800", "tin")
    with pytest.raises(LanguageError, match="must be such as JSON in UTF-8 can hold"):
        stream.enter(facts_of([torn]))
    assert (state(stream), files(tmp_path)) == (before, whole)


def test_folders_of_version_1_are_opened_and_upgraded_at_the_next_change(tmp_path):
    stream = begun(tmp_path)
    old = as_version_1(tmp_path)
    # As a version of this recipe wrote it that knew fewer settings.
    assert old["settings"].pop("tokens") == 8192
    write(tmp_path, old, signed=False)
    (tmp_path / "stream.lock").unlink()
    (tmp_path / "facts-000003.safetensors").write_text("left by a crash")
    before = files(tmp_path)
    again = opened(tmp_path)
    assert state(again) == state(stream)
    assert files(tmp_path) == before
    again.undo("fact 0")
    new = document_of(tmp_path)
    assert (new["version"], new["generation"], new["next"]) == (2, 1, 4)
    # What it began with is written back as it was read.
    for name in ("settings", "layers", "prefixes", "base", "metrics", "tokenizer"):
        assert new[name] == old[name]
    assert len(new["files"]) == 3
    assert state(opened(tmp_path)) == state(again)
    data = bytearray((tmp_path / "facts-000001.safetensors").read_bytes())
    (tmp_path / "facts-000001.safetensors").write_bytes(
        (tmp_path / "facts-000002.safetensors").read_bytes()
    )
    refused(tmp_path, "is not what the stream wrote")
    (tmp_path / "facts-000001.safetensors").write_bytes(data)
    assert len(opened(tmp_path)) == 3


def test_a_method_of_any_weight_knows_its_own_metric_again():
    """w·3/3 is not w for every w, and a stream asks for its settings at each opening."""
    from rankedit_recipes.language.settings import Settings

    for weight in (0.1, 0.2, 0.05, 1.7):
        settings = Settings("one", weight=weight, softness=1.0, layers=3)
        assert settings.shared_by(3).shared_by(3) == settings
        shared = settings.shared_by(2)
        assert shared.shared_by(2) == shared


def test_the_command_line_advises_commands(tmp_path):
    begun(tmp_path)
    stale = opened(tmp_path)
    opened(tmp_path).undo()
    with pytest.raises(LanguageError) as caught:
        stale.undo()
    said = str(caught.value)
    for pattern, instead in REMEDIES:
        said = re.sub(pattern, instead, said)
    assert said.endswith("nothing was written. Give the same command again.")


def test_undo_takes_no_negative_number(tmp_path):
    with pytest.raises(LanguageError, match="with N at least 1"):
        list(tasks.undo_in(None, tmp_path, None, [], -1, tasks.Outputs()))
