"""The probe: a denoiser that ignores words loses nothing by wrong ones."""

from dataclasses import replace

import pytest
import torch
from rankedit_recipes.sandbox.images.presets import PRESETS
from rankedit_recipes.sandbox.images.probe import GROUPS, Probe, wrong
from rankedit_recipes.sandbox.images.run import Run, pictures_of, run
from rankedit_recipes.sandbox.images.scenes import rng_of
from rankedit_recipes.sandbox.images.skins import draw_skin
from rankedit_recipes.sandbox.images.tokenizer import build_tokenizer


class Reader:
    """Its error is 1 and `heed` for each token that differs from the caption it saw first."""

    channels = 2

    def __init__(self, heed):
        self.heed, self.tokenizer, self.first = heed, build_tokenizer(length=40), {}

    def on_device(self, batch):
        return batch

    def errors(self, batch):
        assert set(batch.times.tolist()) == {800}
        key = batch.noise.numpy().tobytes() + bytes(len(batch.tokens))
        first = self.first.setdefault((key, batch.pixels.sum().item()), batch.tokens)
        apart = (first != batch.tokens).sum(1)
        errors = 1 + self.heed * apart.float().view(-1, 1, 1, 1).expand(
            -1, 2, *batch.weight.shape[2:]
        )
        return errors, torch.zeros(())


def test_who_ignores_words_loses_nothing():
    found = Probe(16, 4, 8).growth(Reader(0.0))
    assert found.pop("right") == pytest.approx(1.0)
    assert set(found) == {*GROUPS, "which"}
    assert all(abs(value) < 1e-6 for value in found.values())


def test_who_reads_words_loses_by_each_group():
    found = Probe(16, 4, 8).growth(Reader(1.0))
    assert found["pattern"] == pytest.approx(1.0)
    assert found["badge"] == pytest.approx(2.0)
    assert found["order"] == pytest.approx(2.0)
    assert 2.0 <= found["colours"] <= 3.0
    assert found["which"] > 2.0


def test_wrong_skins_differ_in_their_group_only():
    for i in range(50):
        skin = draw_skin(rng_of("wrong", i))
        found = {group: wrong(skin, group, i) for group in GROUPS}
        assert replace(found["pattern"], pattern=skin.pattern) == skin != found["pattern"]
        assert found["order"].colours == skin.colours[::-1] != skin.colours
        assert not set(found["colours"].colours) & set(skin.colours)
        badge = found["badge"]
        assert badge.mark != skin.mark
        assert badge.mark_colour != skin.mark_colour
        assert replace(badge, mark=skin.mark, mark_colour=skin.mark_colour) == skin
    with pytest.raises(
        ValueError, match="wrong: expected pattern, order, colours or badge, got 'x'"
    ):
        wrong(skin, "x", 0)


def test_a_run_logs_the_probe_and_a_resumed_one_repeats_no_line(tmp_path):
    preset = PRESETS["tiny"]
    pictures_of(preset, tmp_path)
    how = Run(tmp_path, log_every=6, sample_every=0, probe_every=6)
    for steps in (6, 12):
        run(replace(preset, steps=steps, decay=0.0), how)
    lines = (tmp_path / "log.jsonl").read_text()
    assert [lines.count(f'"step": {step}, "probe"') for step in (0, 6, 12)] == [1, 1, 1]
