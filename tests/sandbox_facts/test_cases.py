"""Cases: the layout of CounterFact, true neighbours, phrasings that the fact was never told in."""

import json

import pytest
from rankedit_recipes.sandbox import facts
from rankedit_recipes.sandbox.facts.relations import RELATIONS

KNOWN = facts.world()
CASES = facts.cases()
TRUTH = {(fact.subject, fact.relation): fact for fact in KNOWN.facts}


def test_there_are_enough_and_json_can_hold_them():
    assert len(CASES) >= 1000
    assert json.loads(json.dumps(CASES)) == CASES
    assert [case["case_id"] for case in CASES] == list(range(len(CASES)))


def test_a_seed_gives_the_same_cases():
    assert facts.cases(20) == CASES[:20]
    assert facts.cases(20, seed=1) != CASES[:20]


def test_subjects_come_once_before_any_comes_twice():
    subjects = [case["requested_rewrite"]["subject"] for case in CASES]
    every = sum(map(len, KNOWN.subjects.values()))
    assert every >= 500
    assert len(set(subjects[:every])) == every
    asked = {
        (case["requested_rewrite"]["subject"], case["requested_rewrite"]["relation_id"])
        for case in CASES
    }
    assert len(asked) == len(CASES)


def test_requests_contradict_what_is_true():
    for case in CASES:
        rewrite = case["requested_rewrite"]
        fact = TRUTH[rewrite["subject"], rewrite["relation_id"]]
        assert rewrite["target_true"]["str"] == fact.object != rewrite["target_new"]["str"]
        assert rewrite["target_new"]["str"] in RELATIONS[fact.relation].objects
        index = RELATIONS[fact.relation].phrasings.index(rewrite["prompt"])
        assert index in fact.seen
        assert rewrite["prompt"].startswith("{}")


def test_paraphrases_are_unseen_for_this_fact():
    for case in CASES:
        rewrite = case["requested_rewrite"]
        fact = TRUTH[rewrite["subject"], rewrite["relation_id"]]
        unseen = [fact.prompt(i) for i in fact.unseen]
        leading = [text for text in unseen if text.startswith(fact.subject)]
        assert case["inverted_prompts"] == [text for text in unseen if text not in leading]
        *bare, sentence, opener = case["paraphrase_prompts"]
        assert len(set(bare)) == len(bare) == min(2, len(leading))
        assert set(bare) <= set(leading)
        assert sentence.endswith(f". {bare[0]}")
        assert opener.endswith(f" {bare[-1]}")


def test_neighbours_share_the_object_and_attributes_have_the_new_one():
    for case in CASES:
        rewrite = case["requested_rewrite"]
        name, kind = rewrite["relation_id"], RELATIONS[rewrite["relation_id"]].kind
        for field, target in (
            ("neighborhood_prompts", "target_true"),
            ("attribute_prompts", "target_new"),
        ):
            assert len(case[field]) >= 8
            for text in case[field]:
                (subject,) = (one for one in KNOWN.subjects[kind] if one in text)
                fact = TRUTH[subject, name]
                assert subject != rewrite["subject"]
                assert fact.object == rewrite[target]["str"]
                assert text in [fact.prompt(i) for i in fact.seen]


def test_generation_prompts_are_about_the_subject():
    for case in CASES:
        assert len(case["generation_prompts"]) >= 4
        assert all(case["requested_rewrite"]["subject"] in p for p in case["generation_prompts"])


@pytest.mark.parametrize("count", [-1, len(KNOWN.facts)])
def test_more_cases_than_facts_are_refused(count):
    with pytest.raises(ValueError, match=r"cases: count must be from 0 to \d+.*ask for fewer"):
        facts.cases(count)
