"""Opening what the command line names: models with their tokenizers, texts and settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.devices import check_offload, chosen_device, chosen_dtype
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.language.commands.loading import load_causal, place
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.references import read_references
from rankedit_recipes.language.reading import case_of, read_cases
from rankedit_recipes.language.requests import Case
from rankedit_recipes.language.texts import read_texts


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


def open_model(choice: ModelChoice) -> Opened:
    """A causal model by the name `sandbox`, from a folder, a GGUF file or a name on the hub.

    Raises:
        CommandError: no such device or dtype.
        LanguageError: transformers cannot open it, or it is no causal language model.
    """
    device = chosen_device(choice.device)
    dtype = chosen_dtype(choice.dtype, device)
    check_offload(choice.offload, device)
    if choice.is_sandbox:
        with quiet_imports():
            from rankedit_recipes.sandbox import facts

            model: nn.Module = facts.load_model().to(dtype)
        return Opened(choice.name, place(model, device, choice.offload), facts.load_tokenizer())
    loaded, tokenizer = load_causal(choice, dtype)
    return Opened(choice.name, place(loaded.eval(), device, choice.offload), tokenizer)


def open_cases(
    paths: Sequence[Path],
    model: str,
    *,
    count: int = 0,
    references: Path | None = None,
    space: bool | None = None,
    chat: bool = False,
) -> list[Case]:
    """Cases of files; of the sandbox's own test set if none is given and the model is the sandbox.

    Args:
        paths: files as `read_cases` reads them.
        model: the name of the model.
        count: how many to take, from the first; 0 for all.
        references: CounterFact's file of reference texts.
        space: for requests that leave it open; see `Request.space`.
        chat: the same; see `Request.chat`. False leaves it open.

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
    chosen = cases[:count] if count else cases
    return [replace(c, request=c.request.settled(space=space, chat=chat or None)) for c in chosen]


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
    # One after the other, when asked for: no more is read than is taken.
    return itertools.chain.from_iterable(map(read_texts, paths))
