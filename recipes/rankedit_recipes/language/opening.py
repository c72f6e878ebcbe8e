"""Opening what the command line names: models with their tokenizers, texts and settings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Case, case_of, read_cases

SANDBOX = "sandbox"
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


def open_cases(paths: Sequence[Path], model: str, *, count: int = 0) -> list[Case]:
    """Cases of files; of the sandbox's own test set if none is given and the model is the sandbox.

    Args:
        paths: files as `read_cases` reads them.
        model: the name of the model.
        count: how many to take, from the first; 0 for all.

    Raises:
        LanguageError: no file, for a model that has no test set of its own.
    """
    if paths:
        cases = [case for path in paths for case in read_cases(path)]
    elif model == SANDBOX:
        from rankedit_recipes.sandbox import facts

        cases = [case_of(record) for record in facts.cases()]
    else:
        raise LanguageError(
            "language: give a file of requests; only the sandbox has a test set of its own."
        )
    return cases[:count] if count else cases


def open_texts(paths: Sequence[Path], model: str, *, seed: int = 0) -> Iterator[str]:
    """Texts of files and folders; of the sandbox's own corpus if none is given.

    A `.jsonl` file has its texts in the field `text`; of any other file each line is a text. Of a
    folder all `.txt` and `.jsonl` files are read, in the order of their names.

    Raises:
        LanguageError: nothing to read, or a file that is no text.
    """
    if not paths and model == SANDBOX:
        from rankedit_recipes.sandbox import facts

        yield from facts.corpus(seed)
        return
    files = list(itertools.chain.from_iterable(map(_files, paths)))
    if not files:
        raise LanguageError(
            "language: give texts, as files of one text on each line or as folders of them; only "
            "the sandbox has a corpus of its own."
        )
    for file in files:
        yield from _lines(file)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(f for f in path.rglob("*") if f.suffix in {".txt", ".jsonl"})
    return [path]


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _text(file, number, line) if file.suffix == ".jsonl" else line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise LanguageError(f"language: '{file}' cannot be read as text: {error}.") from error


def _text(file: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise LanguageError(
            f"language: line {number} of '{file}' is no JSON object with a field 'text': {error}."
        ) from error
    if not isinstance(text, str):
        raise LanguageError(
            f"language: the field 'text' in line {number} of '{file}' must be a text, got {text!r}."
        )
    return text
