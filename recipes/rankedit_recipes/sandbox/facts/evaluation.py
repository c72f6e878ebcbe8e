"""Asks a model for facts: does it say the whole object, word for word, and like it best?"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .knowledge import Fact, World, world
from .relations import RELATIONS
from .writing import unrelated

BATCH = 128
"""Questions that are asked together."""


@dataclass(frozen=True)
class Question:
    """A prompt and what is to follow.

    Attributes:
        prompt: Text up to the answer, without a space at its end.
        answer: The object.
    """

    prompt: str
    answer: str


@dataclass(frozen=True)
class Figure:
    """A measured share of right answers.

    Attributes:
        name: What was asked.
        value: Share of right answers.
        wanted: What it should be at least, or None.
        count: Questions.
    """

    name: str
    value: float
    wanted: float | None
    count: int

    @property
    def reached(self) -> bool:
        """Whether it is as wanted."""
        return self.wanted is None or self.value >= self.wanted


def answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]
) -> list[bool]:
    """Whether greedy decoding gives exactly the answer, for each question.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        questions: What to ask.

    Returns:
        One truth value for each question. Every piece of the answer must be the likeliest one,
        which is what greedy decoding means.
    """
    right: list[bool] = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        # No piece goes across a space, so the prompt's pieces are the first ones of the whole.
        asked = tokenizer([question.prompt for question in part])["input_ids"]
        whole = tokenizer([f"{question.prompt} {question.answer}" for question in part])[
            "input_ids"
        ]
        right += _greedy(model, asked, whole)
    return right


@torch.no_grad()
def _greedy(
    model: PreTrainedModel, asked: Sequence[Sequence[int]], whole: Sequence[Sequence[int]]
) -> Iterator[bool]:
    longest = max(map(len, whole))
    rows = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in whole])
    likeliest: Tensor = model(input_ids=rows).logits.argmax(-1)
    for row, guess, before, ids in zip(rows, likeliest, asked, whole, strict=True):
        # Attention is causal, so what pads a row cannot change what stands before it.
        first, last = len(before), len(ids)
        # One place back: the logits of a place are of the piece after it.
        yield bool((guess[first - 1 : last - 1] == row[first:last]).all())


def seen_questions(facts: Sequence[Fact], *, seed: int = 0) -> list[Question]:
    """Each fact in one of the phrasings in which texts tell it."""
    rng = random.Random(f"seen {seed}")
    return [Question(fact.prompt(rng.choice(fact.seen)), fact.object) for fact in facts]


def unseen_questions(facts: Sequence[Fact], *, seed: int = 0) -> list[Question]:
    """Each fact in one of the phrasings in which no text ever tells it."""
    rng = random.Random(f"unseen {seed}")
    return [Question(fact.prompt(rng.choice(fact.unseen)), fact.object) for fact in facts]


def in_context(facts: Sequence[Fact], *, seed: int = 0) -> list[Question]:
    """Each fact in an unseen phrasing, after a sentence about something else."""
    rng = random.Random(f"context {seed}")
    return [
        # The very questions of the row above: the two figures differ by the context alone.
        Question(f"{unrelated(rng)} {question.prompt}", question.answer)
        for question in unseen_questions(facts, seed=seed)
    ]


def figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    of: World | None = None,
    count: int | None = None,
    seed: int = 0,
) -> list[Figure]:
    """Measure what a model knows.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        of: The world; by default the one that the shipped model knows.
        count: Facts to ask for; all by default.
        seed: Of the draws of facts and phrasings.

    Returns:
        The figures.
    """
    known = of or world()
    facts = list(known.facts)
    if count is not None:
        facts = random.Random(f"facts {seed}").sample(facts, min(count, len(facts)))
    asked = {
        ("facts, a phrasing seen for the fact", 0.98): seen_questions(facts, seed=seed),
        ("facts, a phrasing never seen for the fact", 0.90): unseen_questions(facts, seed=seed),
        ("the same, after an unrelated sentence", None): in_context(facts, seed=seed),
        ("two hops, told in texts", None): _hops(known, seen=True),
        ("two hops, never told", None): _hops(known, seen=False),
    }
    measured = []
    for (name, wanted), questions in asked.items():
        right = answered(model, tokenizer, questions)
        measured.append(Figure(name, sum(right) / len(right), wanted, len(right)))
    return measured


def _hops(known: World, *, seen: bool) -> list[Question]:
    return [Question(hop.prompt(0), hop.object) for hop in known.two_hops if hop.seen is seen]


def by_relation(facts: Sequence[Fact], right: Sequence[bool]) -> dict[str, float]:
    """Share of right answers for each relation.

    Args:
        facts: What was asked for.
        right: What `answered` said, in the same order.

    Returns:
        By name of the relation.
    """
    shares = {}
    for name in RELATIONS:
        of_one = [ok for fact, ok in zip(facts, right, strict=True) if fact.relation == name]
        if of_one:
            shares[name] = sum(of_one) / len(of_one)
    return shares
