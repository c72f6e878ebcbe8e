"""CounterFact's and zsRE's measures on a model whose chances are known by hand."""

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.evaluation import evaluate, evaluate_each
from rankedit_recipes.language.evaluating.generating import generate, generation_entropy
from rankedit_recipes.language.evaluating.locality import Unrelated
from rankedit_recipes.language.evaluating.measures import MEASURES, figure, harmonic_mean
from rankedit_recipes.language.evaluating.references import TfIdf
from rankedit_recipes.language.evaluating.scores import Scores, joined
from rankedit_recipes.language.requests import Case, Request

import rankedit as rk
from tests.language_evaluation.toys import table_model, tiny_gpt2, tokenizer

ROWS = {
    "the": {"piano": 0.1, "violin": 0.6},  # the edited prompt: new 0.6, true 0.1
    "is": {"piano": 0.5, "violin": 0.3},  # one paraphrase fails
    "a": {"violin": 0.4, "piano": 0.2},  # the other succeeds; as a neighbour it fails
    "of": {"piano": 0.7, "violin": 0.1},  # a neighbour that stays
}
ANNA = Case(
    Request("{} plays the", "anna", "violin", relation="instrument"),
    true_target="piano",
    paraphrases=("anna's instrument is", "anna plays a"),
    neighbours=("ben and of", "what of", "ben does play a"),
    generation_prompts=("anna plays the",),
)
BEN = Case(
    Request("{} lives in", "ben", "rome", relation="city"),
    locality=(("what does anna play ?", "the"), ("where", "oslo rome")),
)


def scores(cases, rows=ROWS, **options):
    tok = tokenizer()
    return evaluate(table_model(tok, rows), tok, cases, progress=False, **options)


def test_counterfact_by_hand():
    found = scores([ANNA])
    assert found["efficacy"] == 100
    assert found["paraphrase"] == 50
    assert found["neighbourhood"] == pytest.approx(200 / 3)
    assert found["score"] == pytest.approx(3 / (1 / 100 + 1 / 50 + 3 / 200))
    assert found["efficacy magnitude"] == pytest.approx(50, rel=1e-5)
    assert found["paraphrase magnitude"] == pytest.approx((-20 + 20) / 2, abs=1e-4)
    assert found["neighbourhood magnitude"] == pytest.approx((60 + 60 - 20) / 3, rel=1e-5)
    assert found["efficacy accuracy"] == 100
    assert found["paraphrase accuracy"] == 50
    assert found["neighbourhood accuracy"] == pytest.approx(200 / 3)


def test_a_neighbour_with_an_answer_of_its_own_is_to_keep_that():
    asked = ("ben and of", "what of", "ben does play a")
    # After "of" the piano is at 0.7, the violin at 0.1; after "a" at 0.2 and 0.4.
    own = replace(ANNA, neighbours=asked, neighbour_answers=("piano", "flute", "piano"))
    found = scores([own])
    flute = (1 - 0.7 - 0.1) / (len(tokenizer()) - 2)
    assert flute < 0.1  # so that the second neighbour fails as well as the third
    assert found["neighbourhood"] == pytest.approx(100 / 3)
    expected = (60 + 100 * (flute - 0.1) - 20) / 3
    assert found["neighbourhood magnitude"] == pytest.approx(expected, rel=1e-4)
    # Without a true target only neighbours with answers of their own are asked.
    nobody = replace(own, true_target="")
    assert scores([nobody])["neighbourhood"] == pytest.approx(100 / 3)
    assert "neighbourhood" not in scores([replace(ANNA, true_target="")]).figures


def test_free_generation_by_hand():
    rows = {**ROWS, "is": {"violin": 0.6}, "a": {"flute": 0.9}, "violin": {"of": 0.9}}
    own = replace(ANNA, neighbour_answers=("piano", "flute", "flute"))
    found = scores([own, BEN], rows, answers=True)
    # "the" and "is" go on with the violin, "a" with the flute, "of" with the piano.
    assert found["free generation"] == 50  # Ben's "in" goes on with anything
    assert found["paraphrase free generation"] == 50
    assert found["neighbourhood free generation"] == pytest.approx(200 / 3)
    assert not [name for name in scores([own], rows).figures if "free" in name]


def test_a_text_goes_on_by_as_many_tokens_whatever_the_prompt_s_length():
    tok = tokenizer()
    model = table_model(tok, {"the": {"piano": 0.9}, "piano": {"of": 0.9}})
    asked = ["the", "anna plays the"]
    assert generate(model, tok, asked, more=2, top_k=1) == [
        "the piano of",
        "anna plays the piano of",
    ]
    assert generate(model, tok, asked, more=1, top_k=1, whole=False) == ["piano", "piano"]
    assert generate(model, tok, asked, length=4, top_k=1)[1] == "anna plays the piano"


def test_inverted_phrasings_are_measured_apart():
    # "the" ends in a win for the new target, "is" in none.
    inverted = ("what plays the", "what instrument is")
    found = scores([replace(ANNA, inverted=inverted), ANNA])
    assert found["inverted phrasing"] == 50
    assert found["inverted phrasing magnitude"] == pytest.approx((50 - 20) / 2, rel=1e-5)
    assert found["inverted phrasing accuracy"] == 50
    assert found.figures["inverted phrasing"].count == 1
    plain = scores([ANNA, ANNA])
    assert found["score"] == plain["score"]
    assert not [name for name in plain.figures if name.startswith("inverted")]


def test_zsre_by_hand():
    rows = {"in": {"rome": 0.9}, "?": {"the": 0.9}, "where": {"rome": 0.5}, "oslo": {"rome": 0.8}}
    found = scores([BEN], rows)
    assert found["efficacy accuracy"] == 100
    # The first answer is right; of "oslo rome" only the second token is.
    assert found["specificity accuracy"] == 75
    assert "efficacy" not in found.figures  # no true target, nothing to compare with


def test_a_case_counts_once_however_many_prompts_it_has():
    one = Case(ANNA.request, "piano", paraphrases=("anna plays a",))
    four = Case(ANNA.request, "piano", paraphrases=("anna's instrument is",) * 4)
    assert scores([one, four])["paraphrase"] == 50


def test_mixed_cases_leave_out_what_they_lack():
    found = scores([ANNA, BEN])
    assert found.figures["efficacy"].count == 1
    assert found.figures["efficacy accuracy"].count == 2
    assert math.isnan(found.samples["efficacy"][1])


def test_relations_apart():
    parts = scores([ANNA, BEN, ANNA]).by_relation()
    assert list(parts) == ["city", "instrument"]
    assert parts["instrument"].figures["efficacy"].count == 2
    assert "efficacy" not in parts["city"].figures


def test_no_cases_are_refused():
    with pytest.raises(LanguageError, match="evaluate: at least one case is expected"):
        scores([])


def test_every_measure_has_its_definition_in_the_table():
    from rich.console import Console

    found = scores([ANNA, BEN], generations=True, length=8)
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(found.table())
    text = console.export_text()
    assert len(found.figures) == 12
    for name, number in found.figures.items():
        assert MEASURES[name].definition in text
        assert number.text(MEASURES[name]) in text


# ------------------------------------------------------------------------------- uncertainty


def test_interval_holds_the_mean_and_is_repeatable():
    samples = torch.tensor([1.0] * 70 + [0.0] * 30).double()
    found = figure(MEASURES["efficacy"], samples)
    assert found == figure(MEASURES["efficacy"], samples)
    assert found.value == pytest.approx(70)
    # The standard error of a share of 0.7 over 100 cases is 4.6 points.
    assert found.low == pytest.approx(70 - 1.96 * 4.58, abs=1.5)
    assert found.high == pytest.approx(70 + 1.96 * 4.58, abs=1.5)


def test_the_harmonic_score_resamples_whole_cases():
    column = torch.tensor([1.0, 0.0] * 50).double()
    opposite = 1 - column
    same = figure(MEASURES["score"], torch.stack([column] * 3, 1))
    against = figure(MEASURES["score"], torch.stack([column, column, opposite], 1))
    assert same.value == pytest.approx(50)
    assert against.value == pytest.approx(50)
    assert against.high - against.low < same.high - same.low


def test_harmonic_mean_is_zero_where_a_part_is():
    assert harmonic_mean(torch.tensor([1.0, 0.0, 1.0])).item() == 0


# -------------------------------------------------------------------------------- generation


def test_generation_entropy_by_hand():
    # Pairs: 2 x (a b), 1 x (b a); triples: (a b a), (b a b).
    pairs = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert generation_entropy("a b a b") == pytest.approx((2 / 3 * pairs + 4 / 3 * 1) / 2)
    assert math.isnan(generation_entropy("a b"))


def test_generated_texts_depend_on_seed_not_on_batches(monkeypatch):
    tok = tokenizer()
    model = tiny_gpt2(tok)
    prompts = ["anna plays", "ben lives in", "where does", "ben lives in"]
    texts = generate(model, tok, prompts, length=12, seed=1)
    assert all(text.startswith(p) for p, text in zip(prompts, texts, strict=True))
    monkeypatch.setattr("rankedit_recipes.language.evaluating.generating._BATCH", 1)
    assert generate(model, tok, prompts, length=12, seed=1) == texts
    assert generate(model, tok, prompts, length=12, seed=2) != texts


def test_top_1_takes_the_likeliest_and_stops_at_the_end():
    tok = tokenizer()
    rows = {"the": {"piano": 0.9}, "piano": {"and": 0.9}, "and": {"<end>": 0.9}}
    assert generate(table_model(tok, rows), tok, ["the"], top_k=1) == ["the piano and"]


def test_draws_follow_the_chances():
    tok = tokenizer()
    model = table_model(tok, {"the": {"piano": 0.6, "violin": 0.3, "flute": 0.1}})
    drawn = generate(model, tok, ["the"] * 2000, length=2, top_k=2, seed=0)
    # Of the two likeliest, piano has 0.6 / 0.9.
    assert drawn.count("the piano") / 2000 == pytest.approx(2 / 3, abs=0.03)
    assert drawn.count("the flute") == 0


def test_an_empty_prompt_is_refused():
    tok = tokenizer()
    with pytest.raises(LanguageError, match="generate: a prompt with at least one token"):
        generate(tiny_gpt2(tok), tok, [""])
    with pytest.raises(LanguageError, match="generate: prompts must be a list of texts, got 'the'"):
        generate(tiny_gpt2(tok), tok, "the")
    with pytest.raises(LanguageError, match="generate: prompts must be a list of texts, got None"):
        generate(tiny_gpt2(tok), tok, None)


# -------------------------------------------------------------------------------- references


def test_tf_idf_is_that_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    references = ["Anna plays the violin.", "The violin of Ben, the old one", "a flute's tone"]
    ours, theirs = TfIdf(references), TfidfVectorizer().fit(references)
    pairs = [("the violin plays", references[0]), ("An old OLD flute", references[1]),
             ("the the tone of", " ".join(references))]  # fmt: skip
    for one, other in pairs:
        vectors = theirs.transform([one, other]).toarray()
        assert ours.similarity(one, other) == pytest.approx(float(vectors[0] @ vectors[1]))
    assert ours.similarity("unheard words", references[0]) == 0


def test_the_reference_score_is_of_all_that_a_case_has_written():
    model, tok = tiny_gpt2(tokenizer()), tokenizer()
    prompts = ("anna plays the", "where does anna")
    told = replace(ANNA, generation_prompts=prompts, references=("anna plays violin", "a flute"))
    silent = replace(told, generation_prompts=())
    found = evaluate(
        model, tok, [told, ANNA, silent], generations=True, length=12, progress=False
    )  # fmt: skip
    texts = generate(model, tok, [*prompts, *ANNA.generation_prompts], length=12)[:2]
    expected = TfIdf(told.references).similarity("\n".join(texts), "\n".join(told.references))
    assert 0 < expected < 1
    samples = found.samples["reference score"]
    assert float(samples[0]) == pytest.approx(expected)
    assert samples.isnan().tolist() == [False, True, True]
    assert found["reference score"] == pytest.approx(100 * expected)
    plain = evaluate(model, tok, [ANNA], generations=True, length=12, progress=False)
    assert "reference score" not in plain.figures


# ---------------------------------------------------------------------------------- locality


def test_divergence_by_hand():
    tok = tokenizer(["x", "y"])
    before = table_model(tok, {"x": {"x": 0.5, "y": 0.25, "<unk>": 0.25}})
    unrelated = Unrelated(before, tok, ["x x", "x x x", "y"])  # the last is too short
    assert unrelated.count == 5
    assert unrelated.divergences(before).tolist() == [0, 0]
    after = table_model(tok, {"x": {"x": 0.25, "y": 0.5, "<unk>": 0.25}})
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert unrelated.divergences(after).tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_locality_is_a_measure():
    tok = tokenizer()
    before, after = table_model(tok, ROWS), table_model(tok, {"the": {"piano": 0.9}})
    unrelated = Unrelated(before, tok, ["ben plays the piano", "where is the"], tokens=6)
    found = evaluate(after, tok, [ANNA], unrelated=unrelated, progress=False)
    assert found.figures["locality"].count == 2
    assert found["locality"] > 0


def test_locality_needs_text():
    tok = tokenizer()
    with pytest.raises(LanguageError, match="Unrelated: at least one text of two tokens"):
        Unrelated(table_model(tok, ROWS), tok, ["the", ""])


# ------------------------------------------------------------------------------------- files


def test_scores_on_disk(tmp_path):
    found = scores([ANNA, BEN])
    found.save(tmp_path / "scores.json")
    again = Scores.load(tmp_path / "scores.json")
    assert again.names == found.names
    assert {n: f.value for n, f in again.figures.items()} == pytest.approx(
        {n: f.value for n, f in found.figures.items()}, rel=1e-4, abs=1e-4
    )
    said = json.loads((tmp_path / "scores.json").read_text())["figures"]["efficacy"]
    assert said["definition"] == MEASURES["efficacy"].definition


@pytest.mark.parametrize("text", ["", "{}", '{"samples": {}, "notes": {}}', "[1]"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(LanguageError, match="is no file of scores"):
        Scores.load(tmp_path / "x.json")


def test_joining_is_evaluating_together():
    apart = joined([scores([ANNA]), scores([BEN])])
    together = scores([ANNA, BEN])
    assert apart.names == together.names
    assert {n: f.value for n, f in apart.figures.items()} == pytest.approx(
        {n: f.value for n, f in together.figures.items()}
    )
    with pytest.raises(LanguageError, match="joined: at least one part is expected"):
        joined([])


def test_an_unknown_measure_names_those_there_are():
    with pytest.raises(LanguageError, match="was not measured; measured are efficacy accuracy"):
        scores([BEN])["score"]


# ----------------------------------------------------------------------------- edits one by one


def test_each_edit_is_evaluated_on_its_own_case():
    tok = tokenizer()
    model = tiny_gpt2(tok)
    layer = model.transformer.h[1].mlp.c_proj
    torch.manual_seed(0)
    name = "transformer.h.1.mlp.c_proj"
    edits = [
        {name: rk.LowRank(30 * torch.randn(layer.nf, 1), torch.randn(1, layer.nx))}
        for _ in range(2)
    ]
    unrelated = Unrelated(model, tok, ["ben plays the piano", "where is the"])
    found = evaluate_each(model, tok, [ANNA, BEN], edits, unrelated=unrelated, progress=False)
    for index, (case, edit) in enumerate(zip([ANNA, BEN], edits, strict=True)):
        with rk.attach(model, edit):
            alone = evaluate(model, tok, [case], unrelated=unrelated, progress=False)
        magnitude = "efficacy magnitude"
        assert found.samples["efficacy accuracy"][index] == alone.samples["efficacy accuracy"][0]
        assert found.samples["locality"][index] == alone.samples["locality"].mean()
        assert found.samples["locality"][index] > 0
        torch.testing.assert_close(
            found.samples[magnitude][index], alone.samples[magnitude][0], equal_nan=True
        )
