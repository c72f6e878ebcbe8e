"""Opening what the command line names: models with their tokenizers, texts and settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.references import read_references
from rankedit_recipes.language.reading import case_of, read_cases
from rankedit_recipes.language.requests import Case
from rankedit_recipes.language.texts import read_texts

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Opened:
    """A model and what belongs to it.

    Attributes:
        name: as it was asked for.
        model: a causal model of transformers.
        tokenizer: its fast tokenizer.
    """

    name: str
    model: nn.Module
    tokenizer: Any


def open_model(name: str, *, device: str = "", dtype: str = "float32") -> Opened:
    """A causal model by the name `sandbox`, or from a folder or a hub name that transformers knows.

    Raises:
        LanguageError: an unknown dtype, or transformers cannot open it.
    """
    if dtype not in _DTYPES:
        raise LanguageError(f"language: dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}.")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == SANDBOX:
        from rankedit_recipes.sandbox import facts

        model: nn.Module = facts.load_model().to(_DTYPES[dtype])
        return Opened(name, model.to(place), facts.load_tokenizer())
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        loaded = AutoModelForCausalLM.from_pretrained(name, dtype=_DTYPES[dtype])
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise LanguageError(
            f"language: the model {name!r} cannot be opened: {error}. Give '{SANDBOX}', a folder "
            "that transformers wrote, or a name on the hub such as 'openai-community/gpt2'."
        ) from error
    return Opened(name, loaded.to(place).eval(), tokenizer)


def open_cases(
    paths: Sequence[Path], model: str, *, count: int = 0, references: Path | None = None
) -> list[Case]:
    """Cases of files; of the sandbox's own test set if none is given and the model is the sandbox.

    Args:
        paths: files as `read_cases` reads them.
        model: the name of the model.
        count: how many to take, from the first; 0 for all.
        references: CounterFact's file of reference texts.

    Raises:
        LanguageError: no file, for a model that has no test set of its own.
    """
    if paths:
        known = None if references is None else read_references(references)
        cases = [case for path in paths for case in read_cases(path, references=known)]
    elif model == SANDBOX:
        from rankedit_recipes.sandbox import facts

        cases = [case_of(record) for record in facts.cases()]
    else:
        raise LanguageError(
            "language: give a file of requests; only the sandbox has a test set of its own."
        )
    return cases[:count] if count else cases


def open_texts(paths: Sequence[Path], model: str, *, seed: int = 0) -> Iterator[str]:
    """Texts of files and folders, as `read_texts` reads them.

    Args:
        paths: of files and folders.
        model: the name of the model: the sandbox has a corpus of its own, used if no path is given.
        seed: of that corpus, which has no end.

    Raises:
        LanguageError: nothing to read.
    """
    if not paths and model == SANDBOX:
        from rankedit_recipes.sandbox import facts

        return facts.corpus(seed)
    if not paths:
        raise LanguageError(
            "language: give texts, as files of one text on each line or as folders of them; only "
            "the sandbox has a corpus of its own."
        )
    return itertools.chain.from_iterable(map(read_texts, paths))
