"""Reports and plots: everything is in one file, and nothing in it is executed."""

import re

import pytest
import torch
from rankedit_recipes.language.evaluating.measures import MEASURES
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.evaluating.tracing import PLACES, Trace
from rankedit_recipes.language.showing.plots import (
    growth_figure,
    png,
    relations_figure,
    trace_figure,
)
from rankedit_recipes.language.showing.reporting import Report, Table, definitions, scores_table


def made(seed=0, count=40, relations=("plays", "lives in")):
    generator = torch.Generator().manual_seed(seed)
    names = ("efficacy", "paraphrase", "neighbourhood", "efficacy magnitude")
    samples = {n: torch.rand(count, generator=generator).double() for n in names}
    samples["efficacy magnitude"] -= 0.5
    return Scores(
        tuple(f"case {i}" for i in range(count)),
        tuple(relations[i % len(relations)] for i in range(count)),
        samples,
    )


def traced():
    grid = torch.rand(4, len(PLACES))
    grid[:, 1] = float("nan")
    grid[2, 2] = 3
    return Trace({"block": grid, "mlp": grid.clone()}, clean=0.9, disturbed=0.1, facts=7)


def report():
    return Report(
        title="one & <two>",
        scores={"edited": made(1)},
        base=made(2),
        curves={"memit": {1: made(3), 10: made(4)}, "alphaedit": {1: made(5), 10: made(6)}},
        trace=traced(),
        tables={"Costs": Table(("what", "ratio"), [("statistics", "0.2")], "one pass")},
        settings={"seed": "0", "command": "<script>alert(1)</script>"},
    )


def test_the_page_holds_everything(tmp_path):
    report().save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3
    for title in ("Scores", "By relation", "Costs", "Where the facts are", "Definitions"):
        assert f"<h2>{title}</h2>" in page
    assert "in layer 2 at the last subject token" in page
    assert f"{made(1)['efficacy']:.1f} (" in page


def test_the_page_needs_and_runs_nothing_else():
    page = report().html()
    outside = re.findall(r'(?:src|href)\s*=\s*"(?!data:)', page)
    assert outside == []
    assert "<script" not in page
    assert "one &amp; &lt;two&gt;" in page


def test_what_is_left_out_is_not_shown():
    page = Report(title="empty").html()
    assert "<h2>" not in page


def test_failed_cases_are_named_worst_first():
    found = made(1)
    worst = int(found.samples["efficacy magnitude"].argmin())
    page = Report(title="x", scores={"edited": found}).html()
    listed = page.split("Cases that failed")[1].split("Definitions")[0]
    assert re.search(r"case \d+", listed).group() == f"case {worst}"


def test_definitions_name_all_measures():
    rows = definitions().rows
    assert [row[0] for row in rows] == list(MEASURES)
    assert all(row[1] and row[2] for row in rows)


def test_markdown_of_scores():
    text = scores_table({"edited": made(1), "a | b": made(2)}).markdown()
    lines = text.splitlines()
    assert (
        lines[0]
        == "|  | "
        + " | ".join(["score", "efficacy", "paraphrase", "neighbourhood", "efficacy magnitude"])
        + " |"
    )
    assert lines[1].startswith("| --- | ---: |")
    assert lines[3].startswith("| a \\| b |")
    assert len(lines) == 4


def test_growth_draws_a_line_for_each_method_and_the_unedited_model():
    figure = growth_figure(report().curves, base=made(2))
    panel = figure.axes[0]
    assert [line.get_label() for line in panel.lines] == ["memit", "alphaedit", "unedited"]
    numbers, values = panel.lines[0].get_data()
    assert list(numbers) == [1, 10]
    assert values[1] == pytest.approx(made(4)["efficacy"])


def test_relations_draw_a_bar_for_each():
    figure = relations_figure(made(1))
    heights = sorted(bar.get_height() for bar in figure.axes[0].patches)
    groups = made(1).by_relation().values()
    assert heights == pytest.approx(
        sorted(g[n] for g in groups for n in ("efficacy", "paraphrase", "neighbourhood"))
    )


def test_trace_leaves_out_places_that_no_fact_has():
    figure = trace_figure(traced())
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [place for place in PLACES if place != "middle subject tokens"]
    assert png(figure)[:4] == b"\x89PNG"
