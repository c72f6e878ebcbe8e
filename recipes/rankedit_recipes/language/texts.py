"""The user's own text, from a file, a folder, or anything that gives texts one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.tokens import Tokenizer

Texts: TypeAlias = str | PathLike[str] | Iterable[str] | Iterable[Mapping[str, Any]]

_KINDS = (".txt", ".jsonl")


def read_texts(texts: Texts) -> Iterator[str]:
    """Each text.

    Args:
        texts: the path of a `.txt` file with one text on each line, or of a `.jsonl` file with a
            `text` on each, or of a folder with such files, in the order of their names; or an
            iterable of texts or of rows with a `text` (`datasets`).

    Raises:
        LanguageError: no such file, a file of another kind, or a row without a text.
    """
    if isinstance(texts, (str, PathLike)):
        for file in _files(Path(texts)):
            yield from _lines(file)
        return
    for number, item in enumerate(texts):
        yield _text(item, f"item {number}")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        # In one order on every file system: the digest of the corpus depends on it.
        files = sorted(file for file in path.rglob("*") if file.suffix in _KINDS)
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise LanguageError(
            f"read_texts: '{path}' must be a file, or a folder with {' or '.join(_KINDS)} files, "
            "got neither. (A single text is passed in a list.)"
        )
    return files


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                if file.suffix != ".jsonl":
                    # Only the end of the line: spaces at a text's ends are tokens, too.
                    yield line.rstrip("\n")
                else:
                    yield _text(_row(line), f"'{file}', line {number}")
    except UnicodeDecodeError as error:
        raise LanguageError(f"read_texts: '{file}' is not UTF-8 text: {error}.") from error


def _row(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        # Refused with the line's number by `_text`, as any other row without a text.
        return None


def _text(item: object, where: str) -> str:
    if isinstance(item, Mapping):
        item = item.get("text")
    if not isinstance(item, str):
        raise LanguageError(
            f"read_texts: {where} must be a text, or have one under 'text', got {item!r:.80}."
        )
    return item


# Texts that go to the tokenizer together: it works on several at once.
_TOGETHER = 1000


@dataclass(frozen=True)
class Batches:
    """Texts in tokens, as batches of like length that can be read again.

    From the shortest to the longest: of a corpus in its own order, half of what runs is padding,
    and `rankedit.collect` runs its first batch through the whole model, later ones to the last
    projection only.

    Attributes:
        texts: the texts.
        tokenizer: what makes tokens of them.
        size: texts in one batch.
        length: tokens of a text at most.
        device: where the batches go.
    """

    texts: Sequence[str]
    tokenizer: Tokenizer
    size: int
    length: int
    device: torch.device

    def __len__(self) -> int:
        return (len(self.texts) + self.size - 1) // self.size

    @cached_property
    def _rows(self) -> list[torch.Tensor]:
        """The tokens of each text, shortest first; those of one length stay in their order."""
        rows: list[torch.Tensor] = []
        for start in range(0, len(self.texts), _TOGETHER):
            # Padded below and not by the tokenizer: GPT-2's has no padding token.
            encoded = self.tokenizer(
                list(self.texts[start : start + _TOGETHER]), truncation=True, max_length=self.length
            )
            # Half the memory of what models take, and an eighth of a list's.
            rows += [torch.tensor(ids, dtype=torch.int32) for ids in encoded["input_ids"]]
        return sorted(rows, key=len)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.texts), self.size):
            rows = self._rows[start : start + self.size]
            lengths = torch.tensor([len(row) for row in rows])
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long()
            mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
            yield {
                "input_ids": ids.to(self.device),
                "attention_mask": mask.to(self.device),
                "use_cache": False,
            }
