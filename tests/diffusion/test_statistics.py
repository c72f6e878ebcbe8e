"""Statistics of what cross-attention reads."""

from __future__ import annotations

import pytest
import torch
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import read_captions, second_moment
from rankedit_recipes.perfusion import sweep

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import random_concept


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


def test_the_second_moment_is_that_of_what_is_read(pipe, tmp_path):
    moment = second_moment(pipe, CAPTIONS, cache=tmp_path, progress=False)
    read = Parts(pipe).text.encode(CAPTIONS).embeds.double().reshape(-1, 32)
    torch.testing.assert_close(moment.matrix, read.T @ read / len(read), rtol=1e-5, atol=1e-6)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    again = second_moment(pipe, CAPTIONS, cache=tmp_path, progress=False)
    assert torch.equal(again.matrix, moment.matrix)
    assert file.stat().st_mtime_ns == stamp
    second_moment(pipe, CAPTIONS[:9], cache=tmp_path, progress=False)
    second_moment(pipe, CAPTIONS, tokens="content", cache=tmp_path, progress=False)
    second_moment(pipelines.stable_diffusion(seed=1), CAPTIONS, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 4  # other captions, tokens and weights: other files
    rk.save(rk.SecondMoment(32).update(torch.ones(1, 32)), file)
    with pytest.raises(PipelineError, match="does not hold the statistics that its name says"):
        second_moment(pipe, CAPTIONS, cache=tmp_path, progress=False)


def test_captions_come_from_any_text_file(tmp_path):
    (tmp_path / "c.txt").write_text("a cat\n\n  a dog  \n")
    assert read_captions(tmp_path / "c.txt") == ["a cat", "a dog"]
    (tmp_path / "none.txt").write_text("\n")
    for name, message in {"none.txt": "is empty", "nowhere": "there is no file"}.items():
        with pytest.raises(PipelineError, match=message):
            read_captions(tmp_path / name)
    with pytest.raises(PipelineError, match="at least one text"):
        second_moment(pipelines.stable_diffusion(), [" "])


@pytest.mark.parametrize("texts", ["a photo of a cat", b"a cat", 5, [1, 2], ["a cat", None]])
def test_one_text_is_no_list_of_texts(pipe, texts):
    calls = {
        "second_moment: captions": lambda: second_moment(pipe, texts, progress=False),
        "sweep: prompts": lambda: sweep(
            pipe, random_concept(pipe), [], None, prompts=texts, progress=False
        ),
    }
    for said, call in calls.items():
        with pytest.raises(PipelineError, match=rf"{said} must be a list of texts, got .*into a"):
            call()
