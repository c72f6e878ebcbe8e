"""Doing the study's units, and making tables of what they left; nothing is trained here."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import comparison
import pytest
from personalisation import choosing, numbers, page, retraining, side_tables, tables, working
from personalisation.choosing import Choice, slug
from personalisation.methods import Settings
from personalisation.prompts import crossed, prompts_for
from personalisation.retraining import RETRAININGS
from personalisation.study import Study
from personalisation.telling import compared
from personalisation.units import Unit, units_of
from personalisation.world import QUICK, Plan

CONCEPTS = ("bean", "mug")
LONGER, MASKED = RETRAININGS
METHODS = ("Perfusion", "textual inversion", "DreamBooth")
# By method its points: (text, identity).
POINTS = {
    "Perfusion": [(0.9, 0.2), (0.8, 0.6), (0.4, 0.8)],
    "textual inversion": [(0.9, 0.1), (0.7, 0.5)],
    "DreamBooth": [(0.6, 0.7)],
}


def study(folder, **plan):
    kinds = {"bean": "cat", "mug": "cup"}
    names = [SimpleNamespace(name=name, category=kinds[name]) for name in CONCEPTS]
    world = SimpleNamespace(
        concepts=lambda: names,
        search_concepts=lambda: [SimpleNamespace(name="oak")],
        provenance=lambda: {"revision": "abc"},
        plan=Plan(**{"seeds": 1, **plan}),
    )
    methods = {name: SimpleNamespace(name=name, rates=(1.0, 2.0), usual=1.0) for name in METHODS}
    return SimpleNamespace(folder=folder, world=world, methods=methods, plan=world.plan)


def own_units(own):
    """The units of a study that is not opened: no model is loaded."""
    return units_of(own)


def written(file, result):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"result": result, "revision": "abc"}))


def marks(text, identity):
    names = ("clip_i", "clip_t", "category", "scene", "other", "colour", "relation", "diversity")
    return {"text": [text, text], "identity": [identity, identity]} | {n: [0.5, 1] for n in names}


def fill(folder, methods=METHODS):
    for shift, concept in enumerate(CONCEPTS):
        for name in methods:
            points = [
                {"step": 0, "scale": float(i), "marks": marks(x, y + 0.02 * shift)}
                for i, (x, y) in enumerate(POINTS[name])
            ]
            off = {"off_kept": [1.0], "off_changed": [0.1], "leak": [0.0]}
            costs = dict.fromkeys(tables.COST_FIGURES, 1.0)
            choice = {"rate": 1.0, "step": 0, "scale": 0.0}
            result = {"choice": choice, "points": points, "off": off, **costs}
            written(folder / "main" / slug(name) / f"{concept}.json", result)
        found = {name: marks(0.9, 0.1) for name in tables.REFERENCES}
        found["photos whatever the prompt"] = marks(0.2, 1.0)
        known = {"off_kept": [1.0], "leak": [0.1]}
        written(folder / "main/references" / f"{concept}.json", {"marks": found, "off": known})


# ---------------------------------------------------------------------------- units


def test_a_unit_is_done_once_and_says_what_it_depends_on(tmp_path):
    calls = []
    unit = Unit("main/x/bean.json", lambda: calls.append(1) or {"a": 1})
    own = study(tmp_path)
    assert working.attempt(own, unit, print)
    assert not working.attempt(own, unit, print)
    assert calls == [1]
    kept = json.loads((tmp_path / unit.file).read_text())
    assert kept.pop("seconds") >= 0
    assert kept == {"result": {"a": 1}, "revision": "abc"}


def test_a_unit_that_lacks_something_waits(tmp_path):
    unit = Unit("main/x/bean.json", lambda: None)
    assert not working.attempt(study(tmp_path), unit, print)
    assert not (tmp_path / unit.file).exists()


def test_work_does_what_waits_after_what_it_waits_for(tmp_path):
    own, order = study(tmp_path), []

    def second():
        return order.append("second") or 2 if (tmp_path / "b/first.json").exists() else None

    units = [
        Unit("a/second.json", second),
        Unit("b/first.json", lambda: order.append("first") or 1),
    ]
    assert working.work(own, units, until=time.time() + 60, say=lambda _: None) == 0
    assert order == ["first", "second"]


def test_work_begins_nothing_after_its_time_and_only_what_is_asked_for(tmp_path):
    own = study(tmp_path)
    units = [Unit("a/one.json", lambda: 1), Unit("b/two.json", lambda: 2)]
    assert working.work(own, units, until=0, say=lambda _: None) == 2
    assert working.work(own, units, until=time.time() + 60, only="a/", say=lambda _: None) == 0
    assert not (tmp_path / "b/two.json").exists()


def test_the_bar_counts_what_every_process_does(tmp_path, capsys):
    own = study(tmp_path)
    written(tmp_path / "a/before.json", 1)

    def work():
        written(tmp_path / "b/another.json", 1)  # as if another process had done it meanwhile
        return 1

    names = ("a/before", "a/own", "b/another")
    units = [Unit(f"{name}.json", work) for name in names]
    assert working.work(own, units, until=time.time() + 60, say=lambda _: None, shown=True) == 0
    assert "units: 3/3, b/another.json" in capsys.readouterr().err


def _holds(folder, ready):
    def hold():
        ready.set()
        time.sleep(60)

    working.attempt(study(Path(folder)), Unit("main/x/bean.json", hold), print)


def test_a_unit_is_free_again_after_its_process_was_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_holds, args=(str(tmp_path), ready))
    process.start()
    assert ready.wait(30)
    unit = Unit("main/x/bean.json", lambda: 1)
    assert not working.attempt(study(tmp_path), unit, print)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert working.attempt(study(tmp_path), unit, print)


def test_a_folder_belongs_to_one_plan(tmp_path):
    assert comparison.planned(tmp_path, QUICK) == QUICK
    assert comparison.planned(tmp_path, QUICK) == QUICK
    with pytest.raises(SystemExit, match="holds a study of another plan"):
        comparison.planned(tmp_path, Plan())


# ---------------------------------------------------------------------------- the search


def test_the_search_takes_the_best_harmonic_mean_over_its_concepts(tmp_path):
    own = study(tmp_path, search=1)
    method = own.methods["DreamBooth"]
    assert Study.choice(own, method) is None
    for rate, pairs in {1.0: [(0.9, 0.1), (0.6, 0.6)], 2.0: [(1.0, 0.3), (0.2, 0.9)]}.items():
        rows = [
            {"rate": rate, "step": step, "scale": 1.0, "marks": marks(*pair)}
            for step, pair in enumerate(pairs)
        ]
        written(tmp_path / f"search/dreambooth/oak-{rate:g}.json", rows)
    assert Study.choice(own, method) == Choice(1.0, 1, 1.0)
    assert Study.choice(study(tmp_path, search=1, rates=1), method) == Choice(2.0, 0, 1.0)


def test_without_a_search_the_middle_rate_and_the_last_step_are_taken(tmp_path):
    own = study(tmp_path, search=0, steps=(5, 9))
    method = SimpleNamespace(name="x", rates=(1.0, 2.0, 3.0), usual=0.7)
    assert Study.choice(own, method) == Choice(2.0, 9, 0.7)


def test_loras_may_share_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr(choosing, "SHARED", {"DreamBooth": "Perfusion"})
    own = study(tmp_path, search=1, shared=True)
    for rate in (1.0, 2.0):
        row = {"rate": rate, "step": 3, "scale": 1.0, "marks": marks(0.5, 0.1 * rate)}
        written(tmp_path / f"search/perfusion/oak-{rate:g}.json", [row])
    assert Study.choice(own, own.methods["DreamBooth"]) == Choice(2.0, 3, 1.0)


# ---------------------------------------------------------------------------- tables


def test_only_concepts_that_every_method_was_judged_on_are_counted(tmp_path):
    fill(tmp_path)
    own = study(tmp_path)
    assert tables.results_of(own)[0] == ["bean", "mug"]
    (tmp_path / "main/dreambooth/mug.json").unlink()
    assert tables.results_of(own)[0] == ["bean"]
    assert tables.results_of(study(tmp_path / "nothing")) == ([], {})


def test_rows_are_means_over_concepts_inside_their_intervals(tmp_path):
    fill(tmp_path)
    _, results = tables.results_of(study(tmp_path))
    figure = results["DreamBooth"].figures()["identity"]
    assert figure.mean == pytest.approx(0.71)
    assert (figure.low, figure.high) == pytest.approx((0.70, 0.72))
    assert "leak" in results["category word"].figures()
    assert "leak" not in results["description in words"].figures()


def test_areas_are_those_of_the_mean_points_above_the_trivial_methods(tmp_path):
    fill(tmp_path)
    _, results = tables.results_of(study(tmp_path))
    found = tables.areas(results, METHODS, "judges")
    # Above text 0.2 (photos) and identity 0.1 (the word); identities are 0.01 higher in the mean.
    wanted = 0.2 * 0.71 + 0.4 * 0.51 + 0.1 * 0.11
    assert found["Perfusion"].value.mean == pytest.approx(wanted)
    assert found["DreamBooth"].value.mean == pytest.approx(0.4 * 0.61)
    for name in METHODS[1:]:
        assert found[name].ratio.mean == pytest.approx(wanted / found[name].value.mean)
    assert found["Perfusion"].ratio is None
    best = max(METHODS[1:], key=lambda name: found[name].value.mean)
    told = page._areas(results, METHODS)
    assert told[-1][1] == page._cell(found[best].ratio) != ""
    zero = tables.areas(results, METHODS, "judges", zero=True)
    assert zero["DreamBooth"].value.mean == pytest.approx(0.6 * 0.71)


def test_points_are_compared_on_the_pictures_that_all_of_them_have():
    marks = {"identity": [1, 2, 3, 4, 5, 6], "diversity": [0.1, 0.2, 0.3]}
    thinned = tables.Point(1, 1.0, {"bean": marks}).thinned(seeds=2, prompts=2)
    assert thinned.marks == {"bean": {"identity": [1, 3]}}
    prompts = prompts_for("cat", 3)
    assert crossed(prompts, 2, first=7)[::2][:2] == crossed(prompts[:2], 1, first=7)


def test_areas_that_are_nothing_in_a_resample_are_infinitely_exceeded():
    area = tables._area([0.1, 0.0, 0.1], [0.2, 0.2, 0.2], "DreamBooth")
    assert area.ratio.mean == pytest.approx(2)
    assert area.ratio.high > 1e6


def test_tables_say_nothing_where_nothing_was_done(tmp_path, capsys):
    own = study(tmp_path)
    own.ablations = {"as it is": None}
    assert side_tables.pair_table(own) == {}
    assert side_tables.ablation_table(own) == {}
    assert side_tables.attention_table(own) == {}
    page.write_results(own, tmp_path / "results")
    assert "no concept was judged with every method yet" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_ablations_are_shown_at_their_best_scale(tmp_path):
    own = study(tmp_path)
    own.ablations = {"as it is": None, "mask off": None}
    for name, pairs in {"as it is": [(0.9, 0.1), (0.5, 0.5)], "mask off": [(0.8, 0.4)]}.items():
        rows = [{"scale": float(i), "marks": marks(*pair)} for i, pair in enumerate(pairs)]
        written(tmp_path / "ablations" / slug(name) / "bean.json", rows)
    found = side_tables.ablation_table(own)
    assert (found["as it is"]["scale"], found["as it is"]["balance"]) == (1.0, 0.5)
    assert found["mask off"]["area"] == pytest.approx(0.32)
    assert found["as it is"]["gained"].mean == 0
    assert found["mask off"]["gained"].mean == pytest.approx(0.4 - 0.5)


def retrained(folder, concepts=("mug",), gain=0.1, kind=LONGER):
    for name in METHODS[not kind.perfusion :]:
        rows = [
            {"step": 9, "scale": float(i), "marks": marks(x, y + gain)}
            for i, (x, y) in enumerate(POINTS[name])
        ]
        for concept in concepts:
            written(folder / kind.folder / slug(name) / f"{concept}.json", rows)


def test_longer_trainings_are_compared_on_the_concepts_that_have_them(tmp_path):
    fill(tmp_path)
    own = study(tmp_path)
    _, results = tables.results_of(own)
    assert retraining.retraining_table(LONGER, own, results) == {}
    retrained(tmp_path)
    found = retraining.retraining_table(LONGER, own, results)
    # Mug's identities are 0.02 higher than the points say before, 0.1 after; its word has 0.1.
    assert found["Perfusion"]["gained"].mean == pytest.approx(0.08)
    assert found["Perfusion"]["text"].mean == pytest.approx(0.8)
    usual = 0.2 * 0.72 + 0.4 * 0.52 + 0.1 * 0.12
    after = 0.2 * 0.8 + 0.4 * 0.6 + 0.1 * 0.2
    assert found["Perfusion"]["usual"].value.mean == pytest.approx(usual)
    assert found["Perfusion"]["now"].value.mean == pytest.approx(after)
    ratio = found["DreamBooth"]["now"].ratio.mean
    assert ratio == pytest.approx(after / (0.4 * 0.7))


def test_baselines_keep_what_the_usual_training_reached(tmp_path):
    fill(tmp_path)
    retrained(tmp_path, gain=-0.05)
    own = study(tmp_path)
    found = retraining.retraining_table(LONGER, own, tables.results_of(own)[1])
    before, after = (
        {n: r[which].value.mean for n, r in found.items()} for which in ("usual", "now")
    )
    assert after["DreamBooth"] == before["DreamBooth"]
    assert after["Perfusion"] < before["Perfusion"]


def test_perfusion_is_compared_as_it_is_with_baselines_that_get_masks(tmp_path):
    fill(tmp_path)
    retrained(tmp_path, CONCEPTS, kind=MASKED)
    own = study(tmp_path)
    found = retraining.retraining_table(MASKED, own, tables.results_of(own)[1])
    assert found["Perfusion"]["gained"].mean == 0
    assert found["Perfusion"]["now"].value == found["Perfusion"]["usual"].value
    assert found["DreamBooth"]["gained"].mean == pytest.approx(0.09)
    settings = MASKED.settings(Settings(rate=0.1, steps=(3, 6)), own.plan)
    assert settings == Settings(rate=0.1, steps=(6,), masked=True)


@pytest.mark.parametrize("concepts", [0, 2])
def test_the_study_retrains_the_first_concepts_only(tmp_path, concepts):
    own = study(tmp_path, retrained=concepts, search=0, ablations=0)
    own.ablations = {}
    names = [unit.file for unit in own_units(own)]
    longer = [name for name in names if name.startswith("longer/")]
    masked = [name for name in names if name.startswith("masked/")]
    assert len(longer) == concepts * len(METHODS)
    assert len(masked) == concepts * (len(METHODS) - 1)
    assert len(set(names)) == len(names)


def test_a_longer_training_takes_the_rate_and_steps_of_the_plan(tmp_path, monkeypatch):
    seen = []
    artefact = SimpleNamespace(step=7)

    def trained(method, pipe, subject, settings, folder):
        seen.append((settings, folder.name))
        return [artefact]

    monkeypatch.setattr(retraining, "trained", trained)
    own = study(tmp_path, longer_steps=7)
    method = SimpleNamespace(name="DreamBooth", scales=(0.5, 1.0))
    own.choice = lambda _: None
    assert retraining.retrained(LONGER, own, method, SimpleNamespace(name="bean")) is None
    own.choice = lambda _: Choice(0.25, 5, 0.75)
    own.world.settings = lambda rate: Settings(rate=rate)
    own.world.pipe, own.world.subject, own.world.curve = None, lambda c: c, lambda c: []
    own.marks = lambda method, made, scale, concept, asked: {"identity": [scale]}
    rows = retraining.retrained(LONGER, own, method, SimpleNamespace(name="bean"))
    assert [(row["step"], row["scale"]) for row in rows] == [(7, 0.5), (7, 1.0), (7, 0.75)]
    assert seen == [(Settings(rate=0.25, steps=(7,)), "bean-0.25")]


def test_markdown_has_a_row_for_every_method(tmp_path):
    fill(tmp_path)
    own = study(tmp_path)
    own.ablations = {}
    _, results = tables.results_of(own)
    text = page._markdown(page._sections(own, results, METHODS))
    for name in METHODS:
        assert text.count(f"\n| {name} |") == 5
    assert "| Perfusion / best baseline |" in text


def test_the_page_about_the_comparison_has_what_is_there(tmp_path):
    fill(tmp_path)
    own = study(tmp_path)
    own.ablations = {}
    _, results = tables.results_of(own)
    retrained(tmp_path, CONCEPTS)
    main, further, settings, pairs, ablated, longer, masked = compared(
        {"tables": page._sections(own, results, METHODS)}
    )
    assert "| Perfusion | 0.21 [0.20, 0.22] | 0.90 [0.90, 0.90] |" in main
    assert "| category word | 0.10 [0.10, 0.10] | 0.90 [0.90, 0.90] | | | |" in main
    assert all(f"| {name} | " in further for name in METHODS)
    assert "| Perfusion | rate 1, step 0, scale 0 |" in settings
    assert pairs.count("\n") == ablated.count("\n") == masked.count("\n") == 1
    assert "| DreamBooth | 0.80 [0.80, 0.80] | 0.09 [0.08, 0.10] | 0.60" in longer


def test_numbers_are_short():
    assert numbers.short({"a": [1.0, 0.0, None, 0.12345]}) == {"a": [1, 0, None, 0.123]}
