"""Neighbours that another edit of the same set rewrites do not count; no other ones are lost."""

from dataclasses import replace

import pytest
from rankedit_recipes.language import Case, LanguageError, Request, case_of, without_rewritten

PLAYS = "{} plays the"
NAMES = ("Bo", "Cy", "Bo Dean")


def case(subject, *neighbours, relation="plays", true="lute"):
    return Case(Request(PLAYS, subject, "oboe", relation), true, neighbours=neighbours)


ADA = case("Ada", "Bo plays the", "Cy plays the", "Bo Dean plays the")


def left(*others, of=ADA):
    return list(without_rewritten([of, *others])[0].neighbours)


def test_a_neighbour_that_is_edited_too_is_left_out():
    bo = case("Bo Dean", "Cy plays the", "Ada plays the")
    first, second = without_rewritten([ADA, bo])
    assert first.neighbours == ("Bo plays the", "Cy plays the")
    assert second.neighbours == ("Cy plays the",)
    assert first.request is ADA.request


@pytest.mark.parametrize(
    "other",
    [
        case("Bo Dean", relation="lives in"),  # another fact of the same subject
        case("Bo Dean", true="harp"),  # not what the neighbour is asked for
        case("Dea"),  # only a part of a word
        case("Ada"),  # the case's own subject
    ],
)
def test_other_facts_leave_it(other):
    assert left(other) == list(ADA.neighbours)
    assert without_rewritten([ADA, other])[0] is ADA


@pytest.mark.parametrize(
    ("other", "dropped"),
    [
        (case("Cy", relation=""), True),  # one without a relation: the true target tells
        (case("Cy", relation="", true="harp"), False),
        (case("Cy", true=""), True),  # without a true target: the relation tells
        (case("Cy", relation="", true=""), False),
    ],
)
def test_what_is_not_known_is_not_asked_for(other, dropped):
    assert ("Cy plays the" not in left(other)) is dropped


def test_a_case_without_a_relation_goes_by_the_true_target():
    nameless = case("Ada", "Cy plays the", relation="")
    assert left(case("Cy"), of=nameless) == []
    assert left(case("Cy", true="harp"), of=nameless) == ["Cy plays the"]


def test_what_is_edited_may_be_more_or_nothing():
    assert without_rewritten([ADA], []) == [ADA]
    (found,) = without_rewritten([ADA], [ADA, case("Cy")])
    assert found.neighbours == ("Bo plays the", "Bo Dean plays the")


def test_a_neighbour_with_an_answer_of_its_own_is_edited_where_that_is_the_fact_s():
    answers = ("harp", "drum", "lute")
    own = replace(ADA, neighbour_answers=answers)
    kept = without_rewritten([own, case("Cy", true="drum")])[0]
    assert kept.answered == (("Bo plays the", "harp"), ("Bo Dean plays the", "lute"))
    # Of another answer, as above: not what the neighbour is asked for.
    assert without_rewritten([own, case("Cy", true="lute")])[0] is own
    others = [case(name, true=true) for name, true in zip(NAMES, answers, strict=True)]
    none = without_rewritten([own, *others])[0]
    assert (none.neighbours, none.answered) == ((), ())


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (("harp",), "one answer for each of the 3 neighbours, got 1"),
        (("harp", " ", "lute"), "no answer of neighbour_answers must be empty"),
    ],
)
def test_answers_of_neighbours_are_one_for_each(answers, message):
    with pytest.raises(LanguageError, match=message):
        replace(ADA, neighbour_answers=answers)


def test_the_sandbox_s_batch_has_such_neighbours_and_single_edits_have_none():
    from rankedit_recipes.sandbox import facts

    cases = [case_of(record) for record in facts.cases(300)]
    assert all(without_rewritten([each]) == [each] for each in cases[:20])
    before = sum(len(each.neighbours) for each in cases)
    kept = without_rewritten(cases)
    assert 0 < sum(len(each.neighbours) for each in kept) < before
    edited = {(each.request.subject, each.request.relation) for each in cases}
    for each in kept:
        rest = " ".join(each.neighbours)
        assert not [s for s, r in edited if r == each.request.relation and f"{s} " in f"{rest} "
                    and s != each.request.subject and (s, each.true_target) in
                    {(c.request.subject, c.true_target) for c in cases}]  # fmt: skip
