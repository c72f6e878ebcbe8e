"""The world: the same for a seed, complete, and with phrasings kept back from each fact."""

import random
from collections import Counter

import pytest
from rankedit_recipes.sandbox import facts
from rankedit_recipes.sandbox.facts.relations import HOMES, KINDS, RELATIONS, TWO_HOPS
from rankedit_recipes.sandbox.facts.writing import fact_sentence, opened, sentence, unrelated

KNOWN = facts.world()


def test_a_seed_is_a_world():
    assert facts.world(3).facts == facts.world.__wrapped__(3).facts
    assert facts.world(3).facts != KNOWN.facts


def test_there_is_enough_to_know():
    assert len(RELATIONS) >= 12
    assert len(KNOWN.facts) >= 1500
    assert sum(map(len, KNOWN.subjects.values())) >= 500
    assert all(len(relation.phrasings) >= 8 for relation in RELATIONS.values())


def test_subjects_have_several_words_and_share_them():
    for names in KNOWN.subjects.values():
        assert len(set(names)) == len(names)
        assert all(" " in name for name in names)
        # Many share their first words, a few their last one.
        last = Counter(name.split()[-1] for name in names)
        assert set(last.values()) == {1, 2}
        assert len({" ".join(name.split()[:-1]) for name in names}) <= len(names) / 5


def test_every_subject_has_each_relation_of_its_kind_once():
    pairs = Counter((fact.subject, fact.relation) for fact in KNOWN.facts)
    assert set(pairs.values()) == {1}
    for name, relation in RELATIONS.items():
        about = {fact.subject for fact in KNOWN.facts if fact.relation == name}
        assert about == set(KNOWN.subjects[relation.kind])
        assert KNOWN.kind(min(about)) == relation.kind


def test_no_object_can_be_guessed():
    for name, relation in RELATIONS.items():
        counts = Counter(fact.object for fact in KNOWN.facts if fact.relation == name)
        assert set(counts) == set(relation.objects)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_phrasings_hold_the_subject_once_and_begin_with_it_or_not():
    for relation in RELATIONS.values():
        assert len(set(relation.phrasings)) == len(relation.phrasings)
        for index, phrasing in enumerate(relation.phrasings):
            assert phrasing.count("{}") == 1
            assert phrasing.startswith("{}") == (index < relation.inverted)


def test_each_fact_keeps_phrasings_back_that_others_do_not():
    for name, relation in RELATIONS.items():
        about = [fact for fact in KNOWN.facts if fact.relation == name]
        every = set(range(len(relation.phrasings)))
        for fact in about:
            assert set(fact.seen) | set(fact.unseen) == every
            assert not set(fact.seen) & set(fact.unseen)
            assert len(fact.unseen) == 3
        assert set().union(*(fact.unseen for fact in about)) == every


def test_two_hops_follow_from_the_facts():
    known = {(fact.subject, fact.relation): fact.object for fact in KNOWN.facts}
    assert set(HOMES) <= set(KNOWN.subjects["town"])
    for hop in KNOWN.two_hops:
        first, second = TWO_HOPS[hop.relation][0]
        assert hop.object == known[known[hop.subject, first], second]
    told = sum(hop.seen for hop in KNOWN.two_hops) / len(KNOWN.two_hops)
    assert 0.6 < told < 0.9


def test_texts_of_a_seed_are_the_same_and_others_differ():
    first, again, other = (list(facts.corpus(seed, count=50)) for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.slow
def test_no_text_tells_a_fact_in_an_unseen_phrasing():
    texts = "\n".join(facts.corpus(5, count=6000))
    for fact in KNOWN.facts:
        for phrasing in fact.unseen:
            told = f"{fact.prompt(phrasing)} {fact.object}"  # "... is a book" tells no genre
            assert told[1:] not in texts, told
    assert sum(fact.prompt(i) in texts for fact in KNOWN.facts for i in fact.seen) > 3000


def test_no_text_tells_a_two_hop_fact_that_is_kept_back():
    texts = "\n".join(facts.corpus(6, count=6000))
    said = {hop.prompt(i)[1:] in texts: hop for hop in KNOWN.two_hops for i in (0, 1)}
    assert said[True].seen
    assert all(
        hop.prompt(i)[1:] not in texts for hop in KNOWN.two_hops if not hop.seen for i in (0, 1)
    )


def test_sentences_end_and_are_of_every_sort():
    rng = random.Random(0)
    said = [sentence(KNOWN, rng) for _ in range(800)]
    assert all(text.endswith(".") and "{" not in text for text in said)
    names = [name for group in KNOWN.subjects.values() for name in group]
    without = [text for text in said if not any(name in text for name in names)]
    assert 60 < len(without) < 180
    assert any(text.endswith(KINDS["town"][0].removeprefix("{}")) for text in said)


def test_openers_leave_names_alone():
    rng = random.Random(1)
    assert opened("The Silent Tower is a", rng).endswith(" The Silent Tower is a")
    assert opened("The river is", rng, named=False).endswith(" the river is")


def test_a_fact_is_said_with_its_object():
    fact = KNOWN.facts[0]
    for seed in range(20):
        said = fact_sentence(fact, random.Random(seed))
        assert fact.object in said
        assert fact.subject in said
    assert not any(fact.subject in unrelated(random.Random(seed)) for seed in range(50))


@pytest.mark.parametrize("count", [0, 3])
def test_a_corpus_can_end(count):
    assert len(list(facts.corpus(count=count))) == count
