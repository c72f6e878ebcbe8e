"""Texts in tokens, as batches of like length, from a place that was noted before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rankedit_recipes.language.corpus import Corpus
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.sources import LAST

# Texts that are sorted together, at least, and go to the tokenizer together: of a corpus in its own
# order, half of what runs is padding. 64 batches of them are sorted nearly as well as all.
_TOGETHER, _BATCHES = 1000, 64


class Batches:
    """Batches of a corpus, from the shortest to the longest of a thousand texts or more.

    `rankedit.collect` runs its first batch through the whole model, later ones to the last
    projection only: the first is of the shortest texts.

    Args:
        corpus: the texts; it is read as batches are asked for.
        tokenizer: what makes tokens of them.
        size: texts in one batch.
        length: tokens of a text at most.
        device: where the batches go.
        to_last: whether to stop where the last tenth of the corpus begins.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, size: int, length: int,
        device: torch.device, *, to_last: bool = False,
    ) -> None:  # fmt: skip
        self.corpus, self._tokenizer, self._size = corpus, tokenizer, size
        self._length, self._device, self._to_last = length, device, to_last
        # Where the window began, and its batches that were given.
        self._place, self._given = corpus.state_dict(), 0
        self._rows: list[torch.Tensor] | None = None
        # The part of the corpus that was read before the window, and behind it.
        self._span: tuple[float | None, float | None] = (corpus.share(), None)
        # All texts up to the window's end; of the window that is gone on with, as it was then.
        self._digest, self._expected = "", ""

    def __bool__(self) -> bool:
        """Whether there is any text; the first ones are read for that."""
        if self._rows is None:
            self._rows = self._window()
        return bool(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self:
            rows = self._rows or []
            for start in range(self._given * self._size, len(rows), self._size):
                self._given += 1
                yield self._batch(rows[start : start + self._size])
            self._place, self._given, self._rows = self.corpus.state_dict(), 0, None
            self._expected = ""

    def share(self) -> float | None:
        """The part of these batches that was given, from 0 to 1; None if nobody knows."""
        first, last = self._span
        if first is None or last is None:
            return None
        given = min(1.0, self._given * self._size / len(self._rows)) if self._rows else 1.0
        done = first + (last - first) * given
        begin, end = (0.0, LAST) if self._to_last else (LAST, 1.0)
        return min(1.0, max(0.0, (done - begin) / (end - begin)))

    def _window(self) -> list[torch.Tensor]:
        """The tokens of some texts, shortest first; those of one length stay in their order."""
        before = self.corpus.share()
        texts = self._texts()
        self._span = (before, self.corpus.share())
        if self._expected and self.corpus.digest() != self._expected:
            # A state may say less than the stream needs: `datasets` (5.2) does not keep what is in
            # the buffer of `shuffle`, and would leave those texts out without an error.
            self.corpus.read_again(self._place)
            texts = self._texts()
        if self._expected and self.corpus.digest() != self._expected:
            raise LanguageError(
                "collect_statistics: the texts behind the place where it stopped are others than "
                "before; go on with the same ones, in the same order, or remove the checkpoint to "
                "start again."
            )
        self._digest = self.corpus.digest()
        return self._encoded(texts)

    def _texts(self) -> list[str]:
        texts: list[str] = []
        most = max(_TOGETHER, _BATCHES * self._size)
        # Asked before each text: the one that would cross the boundary is not read.
        while len(texts) < most and not (self._to_last and self.corpus.near_end()):
            text = self.corpus.take()
            if text is None:
                break
            texts.append(text)
        return texts

    def _encoded(self, texts: list[str]) -> list[torch.Tensor]:
        rows: list[torch.Tensor] = []
        for start in range(0, len(texts), _TOGETHER):
            # Padded below and not by the tokenizer: GPT-2's has no padding token.
            some = texts[start : start + _TOGETHER]
            encoded = self._tokenizer(some, truncation=True, max_length=self._length)
            # Half the memory of what models take, and an eighth of a list's.
            rows += [torch.tensor(ids, dtype=torch.int32) for ids in encoded["input_ids"]]
        return sorted(rows, key=len)

    def _batch(self, rows: list[torch.Tensor]) -> dict[str, Any]:
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long()
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        return {
            "input_ids": ids.to(self._device),
            "attention_mask": mask.to(self._device),
            "use_cache": False,
        }

    def state_dict(self) -> dict[str, Any]:
        """The place behind the batch that was given last."""
        read = self._digest if self._rows is not None else ""
        return {"corpus": self._place, "given": self._given, "digest": read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place: its window is read again, and nothing before it."""
        self.corpus.load_state_dict(state["corpus"])
        self._place, self._given, self._rows = state["corpus"], state["given"], None
        # Checkpoints of before have none.
        self._expected = state.get("digest", "")
