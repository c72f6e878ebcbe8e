"""Writes texts of the world: facts in their seen phrasings, two-hop sentences, and other talk."""

import random
import string
from collections.abc import Iterator, Sequence
from itertools import count as counting

from .knowledge import SEED, Fact, World, world
from .relations import KINDS, RELATIONS, TWO_HOPS
from .vocabulary import OPENERS, TAILS, UNRELATED, WORDS

# Why several facts in a sentence are so frequent: docs/language-sandbox.md, "Training it".
SHARES = {"fact": 0.42, "several facts": 0.4, "two hops": 0.05, "kind": 0.03, "unrelated": 0.1}
"""How many sentences are of which sort."""

# ASCII's unit separator, which no text has.
MARK = "\x1f"
"""Stands before and after each object in what `text` and `sentence` return; see `plain`."""

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
        # Each text has draws of its own, so that `count` changes none of them.
        yield plain(text(known, random.Random(f"corpus {seed} {index}")))


def plain(said: str) -> str:
    """A text without the marks around its objects.

    Args:
        said: What `text` or `sentence` returned.

    Returns:
        The text as anybody would write it.
    """
    return said.replace(MARK, "")


def marked(said: str) -> tuple[str, list[tuple[int, int]]]:
    """A text without its marks, and where its objects stand.

    Args:
        said: What `text` or `sentence` returned.

    Returns:
        The plain text, and the first position and the one after the last of each object.

    Example:
        >>> marked(f"They play {MARK}jazz{MARK}.")
        ('They play jazz.', [(10, 14)])
    """
    spans, position = [], 0
    for index, piece in enumerate(said.split(MARK)):
        # Marks come in pairs: every second piece is an object.
        if index % 2:
            spans.append((position, position + len(piece)))
        position += len(piece)
    return plain(said), spans


def text(known: World, rng: random.Random, *, familiar: float = 1.0) -> str:
    """One text.

    Args:
        known: The world.
        rng: Source of all draws.
        familiar: Above 1, the first subjects of each kind come more often: the density of subjects
            falls as a power of this order. A training that begins so learns sooner how facts are
            looked up, since it can on few.

    Returns:
        One to four sentences about independently drawn things, with their objects marked.
    """
    length = rng.randint(1, LONGEST)
    return " ".join(sentence(known, rng, familiar=familiar) for _ in range(length))


def sentence(known: World, rng: random.Random, *, familiar: float = 1.0) -> str:
    """One sentence of any sort.

    Args:
        known: The world.
        rng: Source of all draws.
        familiar: See `text`.

    Returns:
        The sentence with its full stop, its objects marked.
    """
    (sort,) = rng.choices(list(SHARES), list(SHARES.values()))
    if sort == "unrelated":
        return unrelated(rng)
    if sort == "two hops":
        hop = rng.choice(known.two_hops)
        # Of an unseen one nothing may be told; a single fact about another subject takes its place.
        if hop.seen:
            said = hop.prompt(rng.randrange(len(TWO_HOPS[hop.relation][1])))
            return _dress(f"{said} {MARK}{hop.object}{MARK}", hop.subject, rng)
    subject = _subject(known, rng, familiar)
    if sort == "kind":
        return rng.choice(KINDS[known.kind(subject)]).format(subject)
    facts = known.about(subject)
    if sort == "several facts":
        return several(rng.sample(facts, rng.randint(2, len(facts))), rng)
    return fact_sentence(rng.choice(facts), rng)


def _subject(known: World, rng: random.Random, familiar: float) -> str:
    # Kinds in proportion to their facts, so that every fact comes equally often.
    fact = rng.choice(known.facts)
    names = known.subjects[known.kind(fact.subject)]
    # u ** f has the density x ** (1 / f - 1) / f: even for f = 1, and the steeper the larger f is.
    return names[int(len(names) * rng.random() ** familiar)]


def fact_sentence(fact: Fact, rng: random.Random) -> str:
    """A fact in one of its seen phrasings.

    Args:
        fact: What to say.
        rng: Source of all draws.

    Returns:
        The sentence with its full stop.
    """
    said = f"{fact.prompt(rng.choice(fact.seen))} {MARK}{fact.object}{MARK}"
    return _dress(said, fact.subject, rng)


def several(facts: Sequence[Fact], rng: random.Random) -> str:
    """Some facts about one subject, which is named once, in seen phrasings.

    Args:
        facts: What to say, in this order.
        rng: Source of all draws.

    Returns:
        The sentence with its full stop.
    """
    parts = []
    for fact in facts:
        # Never empty: of seven phrasings that begin with the subject at most three are unseen.
        index = rng.choice([i for i in fact.seen if i < RELATIONS[fact.relation].inverted])
        said = fact.prompt(index).removeprefix(fact.subject)
        parts.append(f"{said} {MARK}{fact.object}{MARK}")
    return _dress(f"{facts[0].subject}{','.join(parts[:-1])} and{parts[-1]}", facts[0].subject, rng)


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
    # An opener moves the subject away from the start of its sentence.
    if rng.random() < 0.25:
        said = opened(said, rng, named=said.startswith(subject))
    tail = rng.choice(TAILS) if rng.random() < 0.12 else ""
    return f"{said}{tail}."
