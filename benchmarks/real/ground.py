"""A real model, the facts that it is known to hold, and real text to measure it on."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import math
import random
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rankedit_recipes import language
from rankedit_recipes.language.evaluating.likelihoods import evaluating, run
from rankedit_recipes.language.requests import Case, continued
from torch import nn

HERE = Path(__file__).resolve().parent
PARAPHRASES, NEIGHBOURS = 2, 5
"""Of each case, of those that facts.jsonl has; more of them cost time and tell little more."""

LONGEST = 200
"""Tokens of a text that perplexity reads at most."""


@dataclass
class Ground:
    """What is edited, and what it is measured on.

    Attributes:
        model: a causal model of transformers.
        tokenizer: its tokenizer.
        cases: in the order in which they are edited.
        texts: for statistics.
        held_out: real text that no statistics are of: first what the divergence is measured on,
            then what the perplexity is.
        cloze: sentences, each with the word that is to follow.
        kept: folder for what took long to compute.
        tokens: of the texts, for statistics.
        blocks: that statistics are collected of; all if None.
        measured: tokens for the divergence after one edit, for that after a batch, and for the
            perplexity.
    """

    model: nn.Module
    tokenizer: Any
    cases: Sequence[Case]
    texts: Sequence[str]
    held_out: Sequence[str]
    cloze: Sequence[tuple[str, str]]
    kept: Path
    tokens: int = 25_000
    blocks: Sequence[int] | None = None
    measured: tuple[int, int, int] = (250, 1000, 2000)
    _statistics: dict[int, language.Statistics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept.mkdir(parents=True, exist_ok=True)
        # Of the unedited model, whatever is asked first later on.
        _ = self.digest, self.few_unrelated, self.unrelated

    @cached_property
    def digest(self) -> str:
        """Of weights, cases and texts: results of other ones are not reused."""
        told = [self.cases, self.texts, self.held_out, self.cloze, self.measured]
        found = hashlib.sha256(repr(told).encode())
        for name, tensor in self.model.state_dict().items():
            found.update(name.encode())
            found.update(memoryview(tensor.detach().contiguous().view(torch.uint8).numpy()))
        return found.hexdigest()[:16]

    def statistics(self, tokens: int | None = None) -> language.Statistics:
        """What the projections read in so many tokens of the texts, kept in a file."""
        tokens = tokens or self.tokens
        if tokens not in self._statistics:
            name = f"statistics-{self.digest}-{tokens}-{self.blocks or 'all'}"
            file = self.kept / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
            if not file.exists():
                found = language.collect_statistics(
                    self.model, self.tokenizer, taken(self.tokenizer, self.texts, tokens),
                    layers=self.blocks, progress=False, checkpoint=file.with_suffix(".part"),
                )  # fmt: skip
                found.save(file, self.model)
            loaded = language.load_statistics(file, self.model, self.tokenizer)
            self._statistics[tokens] = loaded
        return self._statistics[tokens]

    @cached_property
    def few_unrelated(self) -> language.Unrelated:
        """For edits that are measured one at a time."""
        return self._unrelated(self.measured[0])

    @cached_property
    def unrelated(self) -> language.Unrelated:
        """For batches."""
        return self._unrelated(self.measured[1])

    def _unrelated(self, tokens: int) -> language.Unrelated:
        texts = self.held_out[: len(self.held_out) // 2]
        return language.Unrelated(self.model, self.tokenizer, texts, tokens=tokens)

    def perplexity(self) -> float:
        """Of the model as it is now, on the second half of the text that is held out."""
        texts = self.held_out[len(self.held_out) // 2 :]
        return perplexity(self.model, self.tokenizer, texts, self.measured[2])

    def cloze_share(self) -> float:
        """Percent of the sentences that the model as it is now goes on with the right word."""
        pairs = [(text, continued(word, text)) for text, word in self.cloze]
        found = language.likelihoods(self.model, self.tokenizer, pairs)
        return 100 * float((found.accuracies == 1).double().mean())


def perplexity(model: nn.Module, tokenizer: Any, texts: Sequence[str], tokens: int) -> float:
    """`exp` of the mean loss of a token, over texts until so many tokens are read."""
    total, count = 0.0, 0
    with torch.inference_mode(), evaluating(model):
        for text in texts:
            if count >= tokens:
                break
            ids = torch.tensor([tokenizer(text)["input_ids"][:LONGEST]])
            if ids.shape[1] < 2:
                continue
            logits = run(model, ids).logits[0, :-1].float()
            total += float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    return math.exp(total / count)


def taken(tokenizer: Any, texts: Sequence[str], tokens: int) -> list[str]:
    """Texts from the first on, until there are so many tokens.

    Raises:
        ValueError: there are not.
    """
    found, count = [], 0
    for text in texts:
        if count >= tokens:
            return found
        found.append(text)
        count += len(tokenizer(text)["input_ids"])
    if count < tokens:
        raise ValueError(f"statistics of {tokens} tokens are asked for, the texts have {count}.")
    return found


def interleaved(cases: Sequence[Case], seed: int = 0) -> list[Case]:
    """Cases one relation after the other, in turn: the first few are of as many relations."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[case.request.relation].append(case)
    rng = random.Random(seed)
    for group in groups.values():
        rng.shuffle(group)
    order = sorted(groups)
    rng.shuffle(order)
    most = max(map(len, groups.values()), default=0)
    return [groups[name][i] for i in range(most) for name in order if i < len(groups[name])]


def cut(case: Case) -> Case:
    """A case with as many phrasings and neighbours as the study asks for."""
    return replace(
        case,
        paraphrases=case.paraphrases[:PARAPHRASES],
        neighbours=case.neighbours[:NEIGHBOURS],
        neighbour_answers=case.neighbour_answers[:NEIGHBOURS],
    )


def cloze(path: Path = HERE / "cloze.toml") -> list[tuple[str, str]]:
    """The sentences of a file, each with the word that is to follow."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        (kind["sentence"].replace("{}", first), word)
        for kind in told.values()
        for first, word in kind["pairs"]
    ]


def docstrings(package: str = "scipy", seed: int = 0) -> list[str]:
    """Paragraphs of a package's documentation strings, each once, in an order of the seed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"the package {package} is not installed: pip install {package}.")
    root = Path(spec.origin).parent
    found = dict.fromkeys(
        text
        for file in sorted(root.rglob("*.py"))
        if "tests" not in file.parts
        for text in _paragraphs(ast.parse(file.read_text(encoding="utf-8")))
    )
    texts = list(found)
    random.Random(seed).shuffle(texts)
    return texts


def _paragraphs(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            for part in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(part.split())
                # Headings, tables and examples of code are no sentences.
                if len(text) > 200 and text.endswith(".") and ">>>" not in text:
                    yield text
