"""Writes texts of the world: facts in their seen phrasings, two-hop sentences, and other talk."""

import random
import string
from collections.abc import Iterator
from itertools import count as counting

from .knowledge import SEED, Fact, World, world
from .relations import KINDS, TWO_HOPS
from .vocabulary import OPENERS, TAILS, UNRELATED, WORDS

SHARES = {"fact": 0.78, "two hops": 0.05, "kind": 0.03, "unrelated": 0.14}
"""How many sentences are of which sort."""

LONGEST = 4
"""Sentences of a text at most."""


def corpus(seed: int = 0, *, count: int | None = None, of: World | None = None) -> Iterator[str]:
    """Texts of one to four sentences, as the shipped model was trained on.

    Args:
        seed: Of all draws; each seed gives other texts of the same world.
        count: How many texts; endlessly many by default.
        of: The world; by default the one that the shipped model knows.

    Yields:
        Texts. No fact is ever told in a phrasing that is unseen for it.

    Example:
        >>> next(corpus(7)) == next(corpus(7))
        True
    """
    known = of or world(SEED)
    for index in counting() if count is None else range(count):
        yield text(known, random.Random(f"corpus {seed} {index}"))


def text(known: World, rng: random.Random) -> str:
    """One text.

    Args:
        known: The world.
        rng: Source of all draws.

    Returns:
        One to four sentences about independently drawn things.
    """
    length = rng.randint(1, LONGEST)
    return " ".join(sentence(known, rng) for _ in range(length))


def sentence(known: World, rng: random.Random) -> str:
    """One sentence of any sort.

    Args:
        known: The world.
        rng: Source of all draws.

    Returns:
        The sentence with its full stop.
    """
    (sort,) = rng.choices(list(SHARES), list(SHARES.values()))
    if sort == "unrelated":
        return unrelated(rng)
    if sort == "kind":
        kind = rng.choice(list(known.subjects))
        return rng.choice(KINDS[kind]).format(rng.choice(known.subjects[kind]))
    if sort == "two hops":
        hop = rng.choice(known.two_hops)
        if hop.seen:
            said = hop.prompt(rng.randrange(len(TWO_HOPS[hop.relation][1])))
            return _dress(f"{said} {hop.object}", hop.subject, rng)
    return fact_sentence(rng.choice(known.facts), rng)


def fact_sentence(fact: Fact, rng: random.Random) -> str:
    """A fact in one of its seen phrasings.

    Args:
        fact: What to say.
        rng: Source of all draws.

    Returns:
        The sentence with its full stop.
    """
    said = f"{fact.prompt(rng.choice(fact.seen))} {fact.object}"
    return _dress(said, fact.subject, rng)


def unrelated(rng: random.Random) -> str:
    """A sentence about nothing that is a fact.

    Args:
        rng: Source of all draws.

    Returns:
        The sentence with its full stop.

    Example:
        >>> unrelated(random.Random(0)).endswith(".")
        True
    """
    pattern = rng.choice(UNRELATED)
    pieces = []
    for before, name, _, _ in string.Formatter().parse(pattern):
        pieces.append(before)
        if name:
            pieces.append(rng.choice(WORDS[name]))
    return "".join(pieces)


def opened(said: str, rng: random.Random, *, named: bool = True) -> str:
    """A sentence with an opener before it.

    Args:
        said: The sentence.
        rng: Source of all draws.
        named: Whether it begins with a name, which keeps its capital.

    Returns:
        Both.

    Example:
        >>> opened("By trade, he is a baker.", random.Random(0), named=False)
        'Not surprisingly, by trade, he is a baker.'
    """
    return f"{rng.choice(OPENERS)} {said if named else said[0].lower() + said[1:]}"


def _dress(said: str, subject: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        said = opened(said, rng, named=said.startswith(subject))
    tail = rng.choice(TAILS) if rng.random() < 0.12 else ""
    return f"{said}{tail}."
