"""Requests and cases, and the three formats of files that hold them."""

import json

import pytest
from rankedit_recipes import language
from rankedit_recipes.language import Case, LanguageError, Request, read_cases, read_requests

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native"],
    "neighborhood_prompts": ["The native language of Montesquieu is"],
    "attribute_prompts": ["J.R.R. Tolkien spoke the language"],
    "generation_prompts": ["Danielle Darrieux was born in"],
}
ZSRE = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "answers": ["Illinois Institute of Technology"],
    "rephrase": "What university did Watts Humphrey take part in?",
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
}
PLAIN = {"prompt": "{} plays the", "subject": "Miles Davis", "target": "piano"}


def written(tmp_path, text):
    file = tmp_path / "requests.jsonl"
    file.write_text(text, encoding="utf-8")
    return file


def test_json_lines(tmp_path):
    more = {**PLAIN, "name": "a", "true_target": "trumpet", "paraphrases": ["Miles Davis, on"],
            "inverted": ["The instrument of Miles Davis"]}  # fmt: skip
    file = written(tmp_path, f"{json.dumps(PLAIN)}\n\n{json.dumps(more)}\n")
    first, second = read_cases(file)
    assert first == Case(Request("{} plays the", "Miles Davis", "piano"))
    assert second.true_target == "trumpet"
    assert second.paraphrases == ("Miles Davis, on",)
    assert (first.inverted, second.inverted) == ((), ("The instrument of Miles Davis",))
    assert [request.label for request in read_requests(file)] == ["Miles Davis | {} plays the", "a"]


@pytest.mark.parametrize("lines", [False, True])
def test_counterfact(tmp_path, lines):
    text = json.dumps(COUNTERFACT) if lines else json.dumps([COUNTERFACT], indent=2)
    (case,) = read_cases(written(tmp_path, text))
    assert case.request.text == "The mother tongue of Danielle Darrieux is"
    assert case.request.continuation == " English"
    assert case.request.key == ("Danielle Darrieux", "P103")
    assert case.request.name == "7"
    assert case.true_target == "French"
    assert case.neighbours == ("The native language of Montesquieu is",)
    assert case.attribute_prompts
    assert case.generation_prompts


def test_zsre(tmp_path):
    (case,) = read_cases(written(tmp_path, json.dumps([ZSRE])))
    assert case.request.prompt == "What university did {} attend?"
    assert case.request.target == "Illinois Institute of Technology"
    assert case.locality == (("who played desmond doss father in hacksaw ridge?", "Hugo Weaving"),)


def test_every_bad_line_is_named(tmp_path):
    lines = [
        json.dumps(PLAIN),
        "{not json",
        json.dumps({**PLAIN, "prompt": "no place"}),
        json.dumps({**PLAIN, "targett": "x"}),
        json.dumps({"subject": "x", "target": "y"}),
        json.dumps({**PLAIN, "paraphrases": "one text"}),
        "17",
    ]
    with pytest.raises(LanguageError) as caught:
        read_cases(written(tmp_path, "\n".join(lines)))
    message = str(caught.value)
    assert "6 records that cannot be used; mend or remove" in message
    for number, fault in enumerate(
        (
            "it is no JSON",
            "exactly one {}",
            "unknown field 'targett'",
            "'prompt' is missing",
            "paraphrases must be a list of texts",
            "must be a JSON object",
        ),
        2,
    ):
        assert f"line {number}: " in message
        assert fault in message


def test_at_most_ten_bad_lines_are_listed(tmp_path):
    with pytest.raises(LanguageError, match=r"13 records(.|\n)*line 10(.|\n)*and 3 more"):
        read_cases(written(tmp_path, "x\n" * 13))


def test_records_of_a_list_are_named_by_number(tmp_path):
    records = [COUNTERFACT, {**ZSRE, "subject": "Somebody Else"}, {**ZSRE, "answers": []}]
    with pytest.raises(LanguageError, match=r"record 2: a zsRE record needs(.|\n)*record 3: "):
        read_cases(written(tmp_path, json.dumps(records)))


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(LanguageError, match="cannot be read"):
        read_cases(tmp_path / "nothing")
    with pytest.raises(LanguageError, match="is empty; one JSON record on each line"):
        read_cases(written(tmp_path, "\n"))
    with pytest.raises(LanguageError, match="is no JSON list"):
        read_cases(written(tmp_path, "[1,"))
    (tmp_path / "latin").write_bytes(b"\xe9t\xe9")
    with pytest.raises(LanguageError, match="is not UTF-8"):
        read_cases(tmp_path / "latin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{} and {}"}, "exactly one {}"),
        ({"subject": " "}, "subject must not be empty"),
        ({"target": ""}, "target must not be empty"),
        ({"target": 3}, "target must be a text"),
    ],
)
def test_requests_are_checked(changes, message):
    with pytest.raises(LanguageError, match=message):
        Request(**{**PLAIN, **changes})


def test_a_target_is_continued_after_one_space():
    assert language.continued("a b") == " a b"
    assert language.continued("\na") == "\na"


# ---------------------------------------------------------------------------------- references


def test_reference_texts_belong_to_relation_and_target(tmp_path):
    snippets = [
        {"relation_id": "P103", "target_id": "Q1860", "samples": [{"name": "x", "text": "One."}]},
        {"relation_id": "P103", "target_id": "Q1860", "samples": [{"name": "y", "text": "Two."}]},
        {"relation_id": "P103", "target_id": "Q150", "samples": [{"name": "z", "text": "Other."}]},
    ]
    file = tmp_path / "snippets.json"
    file.write_text(json.dumps(snippets), encoding="utf-8")
    references = language.read_references(file)
    assert references == {("P103", "Q1860"): ["One.", "Two."], ("P103", "Q150"): ["Other."]}
    path = written(tmp_path, json.dumps(COUNTERFACT))
    assert read_cases(path, references=references)[0].references == ("One.", "Two.")
    assert read_cases(path)[0].references == ()
    plain = written(tmp_path, json.dumps({**PLAIN, "references": ["Miles Davis."]}))
    assert read_cases(plain, references=references)[0].references == ("Miles Davis.",)


@pytest.mark.parametrize("text", [None, "{", "[1]", '[{"relation_id": "P1"}]', "7"])
def test_a_file_of_something_else_holds_no_references(tmp_path, text):
    file = tmp_path / "snippets.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(LanguageError, match=r"read_references: '.*' is no file of CounterFact's"):
        language.read_references(file)
