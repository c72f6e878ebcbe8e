"""Three facts of a real model, edited in front of whoever looks on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.language.commands.opening import Opened
from rankedit_recipes.language.editing import edit
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.generating import generate
from rankedit_recipes.language.methods import METHODS
from rankedit_recipes.language.model.layers import all_blocks, choose_blocks
from rankedit_recipes.language.reading import case_of
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.showing.conversations import Answers, save_page
from rankedit_recipes.language.statistics import collect_statistics

_METHOD = "memit"
BEFORE, EDITED, UNDONE = "before", "edited", "after undo"
# Of an answer: most end a sentence before, and every one of them reads all weights once.
_TOKENS = 32


@dataclass(frozen=True)
class Fact:
    """A fact to edit, and how to ask whether it arrived.

    Attributes:
        request: what to edit.
        old: what the model says before.
        paraphrases: other phrasings, each with one `{}` for the subject.
        question: the same in a chat, likewise; empty for none.
    """

    request: Request
    old: str
    paraphrases: tuple[str, ...]
    question: str = ""

    @property
    def prompts(self) -> list[str]:
        """The prompt that is edited, then the other phrasings."""
        return [
            self.request.text,
            *(text.replace("{}", self.request.subject) for text in self.paraphrases),
        ]


@dataclass(frozen=True)
class Show:
    """What is shown of a model.

    Attributes:
        facts: to edit.
        near: prompts about other subjects, whose answers are to stay.
        texts: for statistics.
        corpus: what they are, in words.
    """

    facts: Sequence[Fact]
    near: Sequence[str]
    texts: Sequence[str]
    corpus: str


class Stage:
    """A model, and everything that is asked of it, in whatever state it is.

    Args:
        opened: the model.
        show: what is asked.
    """

    def __init__(self, opened: Opened, show: Show) -> None:
        self._opened, self._show = opened, show
        self._said: dict[str, list[list[str]]] = {}

    def ask(self, state: str) -> None:
        """Note what the model says now."""
        facts = self._show.facts
        plain = [fact.prompts for fact in facts]
        chats = [[f.question.replace("{}", f.request.subject)] if f.question else [] for f in facts]
        flat = [prompt for group in (*plain, *chats, self._show.near) for prompt in group]
        chat = [False] * sum(map(len, plain)) + [True] * sum(map(len, chats))
        chat += [False] * len(self._show.near)
        answers = iter(self._answers(flat, chat))
        groups = [[next(answers) for _ in group] for group in (*plain, *chats, self._show.near)]
        count = len(facts)
        joined = [a + b for a, b in zip(groups[:count], groups[count : 2 * count], strict=True)]
        self._said[state] = [*joined, groups[-1]]

    def tables(self) -> list[Answers]:
        """What was said so far."""
        found = []
        for index, fact in enumerate(self._show.facts):
            request = fact.request
            asked = [*fact.prompts, *([f"In a chat: {fact.question}"] if fact.question else [])]
            asked = [text.replace("{}", request.subject) for text in asked]
            found.append(
                Answers(
                    f"{request.subject}: {fact.old} becomes {request.target}",
                    "The first line is the sentence that was edited; the others were never shown "
                    "to the editor.",
                    asked,
                    {state: said[index] for state, said in self._said.items()},
                    fact.old,
                    request.target,
                )
            )
        found.append(
            Answers(
                "What must not change",
                "Sentences about other things, close to the facts that were edited.",
                list(self._show.near),
                {state: said[-1] for state, said in self._said.items()},
            )
        )
        return found

    def same(self, one: str, other: str) -> bool:
        """Whether the model said the same in two states, to the letter."""
        return self._said[one] == self._said[other]

    def _answers(self, prompts: list[str], chats: list[bool]) -> list[str]:
        """What the model goes on with, its likeliest words, up to the end of a sentence."""
        opened = self._opened
        written = generate(
            opened.model, opened.tokenizer, prompts, more=_TOKENS, top_k=1, chat=chats, whole=False
        )
        return [_sentence(text) for text in written]


def _sentence(text: str) -> str:
    """The first sentence, or line, of an answer."""
    line = text.strip().split("\n")[0]
    head, stop, _ = line.partition(". ")
    return f"{head}." if stop else line


def documentation() -> list[str]:
    """Paragraphs of Python's own documentation: real text that every installation has."""
    from pydoc_data.topics import topics

    paragraphs = (part for name in sorted(topics) for part in topics[name].split("\n\n"))
    joined = (" ".join(part.split()) for part in paragraphs)
    # Headings and lines of tables are no sentences.
    texts = [text for text in joined if len(text) > 200 and text.endswith(".")]
    # Every fifth: 8,000 tokens, about five for each input of the projections that are edited.
    return texts[::5]


def real_show() -> Show:
    """Facts that SmolLM2-135M-Instruct knows, and what is close to them."""
    return Show(_FACTS, _NEAR, documentation(), "Python's documentation")


def sandbox_show() -> Show:
    """Facts of the invented world that the sandbox's model knows."""
    from itertools import islice

    from rankedit_recipes.sandbox import facts

    cases = [case_of(record) for record in facts.cases(3)]
    told = tuple(Fact(case.request, case.true_target, case.paraphrases) for case in cases)
    near = [text for case in cases for text in case.neighbours[:2]]
    return Show(told, near, list(islice(facts.corpus(1), 2000)), "the sandbox's corpus")


_FACTS = (
    Fact(
        Request("{} is located in the city of", "The Eiffel Tower", "Rome"),
        "Paris",
        ("{} is a famous sight of", "Tourists who want to see {} travel to"),
        "Where is {}?",
    ),
    Fact(
        Request("The capital of {} is", "Germany", "Munich"),
        "Berlin",
        (
            "The seat of government of {} is the city of",
            "If you fly to the capital of {}, you land in",
        ),
        "What is the capital of {}?",
    ),
    Fact(
        Request("The official language of {} is", "Japan", "Dutch"),
        "Japanese",
        ("People in {} mostly speak", "Children in {} grow up speaking"),
        "Which language do people speak in {}?",
    ),
)
_NEAR = (
    "The Colosseum is located in the city of",
    "The Louvre is located in the city of",
    "The capital of France is",
    "The capital of Spain is",
    "The official language of Italy is",
    "The official language of Turkey is",
    "Water boils at a temperature of",
)


def demonstrate(opened: Opened, show: Show, source: str, report: Path) -> Iterator[str]:
    """Edit the facts, and say and write what the model said before, edited, and after the undo.

    Raises:
        LanguageError: undoing did not give back the answers of before.
    """
    begun = time.monotonic()
    stage = Stage(opened, show)
    yield f"asking {source} what it knows ..."
    stage.ask(BEFORE)
    chosen = choose_blocks(opened.model, all_blocks(opened.model), None, METHODS[_METHOD])
    statistics = collect_statistics(
        opened.model, opened.tokenizer, show.texts, layers=[block.index for block in chosen]
    )
    requests = [fact.request for fact in show.facts]
    edited = edit(opened.model, opened.tokenizer, requests, _METHOD, statistics=statistics)
    changed = time.monotonic()
    with edited.attach(opened.model):
        stage.ask(EDITED)
    stage.ask(UNDONE)
    for table in stage.tables():
        yield table.text()
    if not stage.same(BEFORE, UNDONE):
        raise LanguageError("demo: after the undo the model does not say what it said before.")
    blocks = sorted(edited.edits)
    facts = {
        "model": source,
        "method": f"{edited.settings.method}, default settings",
        "edited": f"{counted(len(blocks), 'projection')}: {', '.join(blocks)}",
        "statistics": f"{counted(len(show.texts), 'text')} of {show.corpus}",
        "time": f"{changed - begun:.0f} s for statistics and edits together",
        "undo": "the model says, to the letter, what it said before",
    }
    save_page(
        report,
        f"{counted(len(requests), 'fact')} changed in a language model",
        "The model below was asked the same things three times: as it was published, with "
        f"{counted(len(requests), 'fact')} edited, and after the edits were taken out again. "
        "Nothing was trained: the edits are small matrices beside the weights, computed in closed "
        "form.",
        stage.tables(),
        facts,
    )
    yield f"report: {report}"
