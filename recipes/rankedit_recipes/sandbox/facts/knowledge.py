"""The world itself: who there is, what is true, and which words a fact was never told in."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from .relations import HOMES, RELATIONS, TWO_HOPS
from .vocabulary import (
    BOOK_FIRST,
    BOOK_LAST,
    COMPANY_FIRST,
    COMPANY_LAST,
    FIRST,
    LAST,
    TOWN_FIRST,
    TOWN_LAST,
)

SEED = 0
"""Of the world that the shipped model knows."""

# 870 subjects with 661 last words: docs/decisions/names-that-differ.md.
COUNTS: Mapping[str, int] = {"person": 330, "town": 180, "company": 180, "book": 180}
"""Subjects of each kind."""

NAMES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "person": (FIRST, LAST),
    "town": (TOWN_FIRST, TOWN_LAST),
    "company": (COMPANY_FIRST, COMPANY_LAST),
    "book": (tuple(f"The {word}" for word in BOOK_FIRST), BOOK_LAST),
}
"""What the names of each kind begin and end with."""

# Other ones for other facts: every phrasing is read often, only never with this fact.
UNSEEN = 3
"""Phrasings of each fact that no text ever uses for it."""


@dataclass(frozen=True)
class Fact:
    """Something that is true.

    Attributes:
        subject: Whom or what it is about.
        relation: Name of the relation, see `RELATIONS`.
        object: What is said.
        seen: Indices of the phrasings in which texts may tell it.
        unseen: Indices of the others, in which no text ever tells it.
    """

    subject: str
    relation: str
    object: str
    seen: tuple[int, ...]
    unseen: tuple[int, ...]

    def prompt(self, phrasing: int) -> str:
        """The sentence up to the object.

        Args:
            phrasing: Index of the phrasing.

        Returns:
            The text, without a space at its end.
        """
        return RELATIONS[self.relation].phrasings[phrasing].format(self.subject)


@dataclass(frozen=True)
class TwoHop:
    """A fact that follows from two others.

    Attributes:
        subject: Whom or what it is about.
        relation: Name of the pair of relations, see `TWO_HOPS`.
        object: What follows.
        seen: Whether texts tell it; the others can only be inferred.
    """

    subject: str
    relation: str
    object: str
    seen: bool

    def prompt(self, phrasing: int) -> str:
        """The sentence up to the object.

        Args:
            phrasing: Index of the phrasing.

        Returns:
            The text, without a space at its end.
        """
        return TWO_HOPS[self.relation][1][phrasing].format(self.subject)


@dataclass(frozen=True)
class World:
    """All subjects, facts and two-hop facts.

    Attributes:
        subjects: By kind.
        facts: Every fact; each subject has one of every relation of its kind.
        two_hops: What follows from two of them.
    """

    subjects: Mapping[str, tuple[str, ...]]
    facts: tuple[Fact, ...]
    two_hops: tuple[TwoHop, ...]

    def kind(self, subject: str) -> str:
        """What a subject is: person, town, company or book."""
        return self._kinds[subject]

    def about(self, subject: str) -> tuple[Fact, ...]:
        """All facts about a subject."""
        return self._facts[subject]

    @cached_property
    def _kinds(self) -> dict[str, str]:
        return {name: kind for kind, names in self.subjects.items() for name in names}

    @cached_property
    def _facts(self) -> dict[str, tuple[Fact, ...]]:
        gathered: dict[str, list[Fact]] = {}
        for fact in self.facts:
            gathered.setdefault(fact.subject, []).append(fact)
        return {subject: tuple(facts) for subject, facts in gathered.items()}


# Asked for at each row of a batch.
@cache
def world(seed: int = SEED) -> World:
    """The world of a seed; the same everywhere.

    Args:
        seed: Of all draws. The shipped model knows the default.

    Returns:
        The world.

    Example:
        >>> len(world().facts) > 1000
        True
    """
    subjects = {kind: _names(kind, count, seed) for kind, count in COUNTS.items()}
    facts = tuple(_facts(subjects, seed))
    return World(subjects, facts, tuple(_two_hops(facts, seed)))


def _names(kind: str, count: int, seed: int) -> tuple[str, ...]:
    """Names of a kind; each last word is used about equally often."""
    rng = random.Random(f"names {seed} {kind}")
    firsts, lasts = NAMES[kind]
    names = list(HOMES) if kind == "town" else []  # Homes must exist, or there were no second hop.
    taken, lasts = set(names), [word for word in lasts if not any(word in name for name in names)]
    while len(names) < count:
        # Every last word once before one comes twice: where dozens share it, facts cannot be edited
        # independently (docs/decisions/names-that-differ.md).
        for last in rng.sample(lasts, len(lasts)):
            name = f"{rng.choice(firsts)} {last}"
            if name not in taken and len(names) < count:
                taken.add(name)
                names.append(name)
    return tuple(names)


def _facts(subjects: Mapping[str, tuple[str, ...]], seed: int) -> Iterator[Fact]:
    for name, relation in RELATIONS.items():
        # Draws of its own for each relation: a new one leaves the facts of the others alone.
        rng = random.Random(f"facts {seed} {name}")
        asked = subjects[relation.kind]
        # Every object equally often, so that none can be guessed and each has neighbours.
        objects = [relation.objects[i % len(relation.objects)] for i in range(len(asked))]
        rng.shuffle(objects)
        for subject, said in zip(asked, objects, strict=True):
            order = rng.sample(range(len(relation.phrasings)), len(relation.phrasings))
            seen, unseen = sorted(order[UNSEEN:]), sorted(order[:UNSEEN])
            yield Fact(subject, name, said, tuple(seen), tuple(unseen))


def _two_hops(facts: tuple[Fact, ...], seed: int) -> Iterator[TwoHop]:
    rng = random.Random(f"two hops {seed}")
    known = {(fact.subject, fact.relation): fact.object for fact in facts}
    for name, ((first, second), _) in TWO_HOPS.items():
        for (subject, relation), middle in known.items():
            if relation == first:
                yield TwoHop(subject, name, known[middle, second], seen=rng.random() < 0.75)
