"""The tour runs as it stands, and its pictures and the README's are those that it makes."""

import re

import pytest
from PIL import Image

from docs import pictures


def size(file):
    with Image.open(file) as picture:
        return picture.size


@pytest.mark.slow
def test_the_tour_runs_and_makes_every_picture_that_it_shows(tmp_path):
    made = pictures.run_tour(tmp_path)
    shown = set(re.findall(r"!\[[^\]]*\]\(images/tour/([^)]*)\)", pictures.TOUR.read_text()))
    assert shown == {file.name for file in tmp_path.glob("*.png")}
    committed = pictures.FRONT.parent / "tour"
    assert shown == {file.name for file in committed.iterdir()}
    for name in shown:
        assert size(tmp_path / name) == size(committed / name), name
    # The gate is a slider: shut, the picture is another one than open.
    assert made["slides"][0].tobytes() != made["slides"][-1].tobytes()
    assert pictures.front_picture(made).size == size(pictures.FRONT)
