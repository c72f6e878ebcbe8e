"""Requests to edit the shipped model with, in the layout of the CounterFact data set."""

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from .knowledge import Fact, World, world
from .relations import CONTINUATIONS, RELATIONS
from .writing import opened, unrelated

COUNT = 1500
"""Cases of the shipped test set."""

NEIGHBOURS = 10
"""Prompts about other subjects in each case, at most."""

Case = dict[str, Any]


class _Books(NamedTuple):
    """The world as cases need it: facts by subject, and by what they say."""

    by_subject: dict[str, list[Fact]]
    by_object: dict[tuple[str, str], list[Fact]]


def cases(count: int = COUNT, *, seed: int = 0, of: World | None = None) -> list[Case]:
    """Requests with everything that CounterFact evaluates, as its JSON file has them.

    Each case asks the model to take another object of the same relation for true.
    `paraphrase_prompts` are in phrasings in which no text ever told this fact and which put the
    subject first: bare, after an unrelated sentence, and after an opener, up to four. Phrasings
    that tell the relation before the subject are apart, in `inverted_prompts`, which CounterFact
    does not have: there the model reads the subject already knowing what is asked, and an edit of
    the subject's key elsewhere says little about it. `neighborhood_prompts` ask for the same
    relation of other subjects of which the true object is true as well, in phrasings that texts
    used for them; `attribute_prompts` the same of subjects of which the new object is true. The
    first cases, one for each subject of the world, are all about different subjects; then every
    subject comes again with another relation.

    Args:
        count: How many cases; at most one for each fact that has a paraphrase.
        seed: Of all draws. The shipped test set is `cases()`.
        of: The world; by default the one that the shipped model knows.

    Returns:
        The cases.

    Raises:
        ValueError: If the world has fewer of them.

    Example:
        >>> chosen = cases(100)
        >>> len({case["requested_rewrite"]["subject"] for case in chosen})
        100
    """
    known = of or world()
    # The three unseen phrasings of a few facts all have the subject late: no paraphrase is left.
    askable = [fact for fact in known.facts if _unseen_leading(fact)]
    if not 0 <= count <= len(askable):
        raise ValueError(
            f"cases: count must be from 0 to {len(askable)}, the number of facts with a paraphrase "
            f"in this world, got {count}; ask for fewer"
        )
    books = _Books(defaultdict(list), defaultdict(list))
    for fact in askable:
        books.by_subject[fact.subject].append(fact)
    # Neighbours are asked for in seen phrasings only, so that any fact will do.
    for fact in known.facts:
        books.by_object[fact.relation, fact.object].append(fact)
    chosen = _ordered(books, random.Random(f"order {seed}"))
    # Each case has draws of its own: with a larger `count` the first ones stay as they are.
    return [_case(i, next(chosen), books, random.Random(f"{seed} {i}")) for i in range(count)]


def _ordered(books: _Books, rng: random.Random) -> Iterator[Fact]:
    """The facts to ask for: one of each subject, then another one of each, and so on."""
    left = {name: rng.sample(facts, len(facts)) for name, facts in books.by_subject.items()}
    # A batch of 500 thus never asks two things of one subject (docs/language-sandbox.md).
    while left:
        for name in rng.sample(sorted(left), len(left)):
            yield left[name].pop()
        left = {name: facts for name, facts in left.items() if facts}


def _case(index: int, fact: Fact, books: _Books, rng: random.Random) -> Case:
    relation = RELATIONS[fact.relation]
    new = rng.choice([other for other in relation.objects if other != fact.object])
    # A request puts the subject first, as most of CounterFact's do.
    leading = [i for i in fact.seen if i < relation.inverted]
    near = [other for other in books.by_object[fact.relation, fact.object] if other != fact]
    return {
        "case_id": index,
        "requested_rewrite": {
            "prompt": relation.phrasings[rng.choice(leading)],
            "relation_id": fact.relation,
            "target_new": {"str": new},
            "target_true": {"str": fact.object},
            "subject": fact.subject,
        },
        "paraphrase_prompts": _paraphrases(fact, rng),
        "inverted_prompts": _inverted(fact),
        "neighborhood_prompts": _told(near, rng),
        "attribute_prompts": _told(books.by_object[fact.relation, new], rng),
        # Twice each, as CounterFact repeats its own: what follows is drawn at random.
        "generation_prompts": [
            text.format(fact.subject) for text in CONTINUATIONS[relation.kind] for _ in range(2)
        ],
    }


def _unseen_leading(fact: Fact) -> list[str]:
    inverted = RELATIONS[fact.relation].inverted
    return [fact.prompt(i) for i in fact.unseen if i < inverted]


def _paraphrases(fact: Fact, rng: random.Random) -> list[str]:
    leading = _unseen_leading(fact)
    rng.shuffle(leading)
    first, last = leading[0], leading[-1]
    # First and last are the same where one unseen phrasing has the subject first.
    return [*dict.fromkeys([first, last]), f"{unrelated(rng)} {first}", opened(last, rng)]


def _inverted(fact: Fact) -> list[str]:
    inverted = RELATIONS[fact.relation].inverted
    return [fact.prompt(i) for i in fact.unseen if i >= inverted]


def _told(facts: list[Fact], rng: random.Random) -> list[str]:
    """Prompts of up to ten facts, in phrasings that texts used for them."""
    drawn = rng.sample(facts, min(NEIGHBOURS, len(facts)))
    return [fact.prompt(rng.choice(fact.seen)) for fact in drawn]
