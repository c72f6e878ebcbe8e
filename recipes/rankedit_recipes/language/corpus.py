"""Numbered texts, of which one shard's are given, from a place that was noted before."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.sources import Source, before_last

# Digests of texts are added modulo this: sums of shards can be compared with that of the whole.
_DIGITS = 1 << 128


class Corpus:
    """Numbered texts of a source, of which one shard's are given.

    Blank texts count for nothing. The digests are sums over texts of a digest of each with its
    number: those of all shards add up to that of the whole.

    Args:
        source: of the texts.
        shard: which are given; all if None.
        count: how many texts of the source there are at most; 0 for all.
    """

    def __init__(self, source: Source, shard: rk.Shard | None = None, count: int = 0) -> None:
        self._source, self._shard, self._count = source, shard, count
        self._iterator: Iterator[str] | None = None
        self.texts, self.taken = 0, 0
        self._whole, self._own = 0, 0

    def take(self) -> str | None:
        """The next text of the shard; None behind the last one of the corpus."""
        self._iterator = self._iterator or iter(self._source)
        while not self._count or self.texts < self._count:
            text = next(self._iterator, None)
            if text is None:
                return None
            if not text.strip():
                continue
            number, added = self.texts, _number_of(self.texts, text)
            self.texts, self._whole = number + 1, (self._whole + added) % _DIGITS
            if self._shard is None or self._shard.takes(number):
                self.taken, self._own = self.taken + 1, (self._own + added) % _DIGITS
                return text
        return None

    def near_end(self) -> bool | None:
        """Whether the last tenth begins now; None if nobody knows where it does."""
        source = self._source.near_end(self.texts)
        if not self._count:
            return source
        return bool(source) or self.texts >= before_last(self._count)

    def share(self) -> float | None:
        """The part of all texts that was read, from 0 to 1; None if nobody knows."""
        share = self._source.share()
        # Whichever ends first: there may be fewer texts than were asked for.
        return max(share or 0.0, self.texts / self._count) if self._count else share

    def mark(self) -> str:
        """What tells it from other corpora before it is read."""
        part = f", shard {self._shard}" if self._shard else ""
        return f"{self._source.mark()} {self._count or 'all'}{part}"

    def described(self) -> str:
        """How many texts there were, of all shards, and their digest."""
        return f"{self.texts} texts, {f'{self._whole:032x}'[:16]}"

    def digest(self) -> str:
        """Of all texts so far, with their numbers."""
        return f"{self.texts}:{self._whole:x}"

    def state_dict(self) -> dict[str, Any]:
        """The place behind the text that was given last."""
        return {
            "source": self._source.place(),
            "texts": [self.texts, self.taken],
            "digests": [f"{self._whole:x}", f"{self._own:x}"],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a place.

        Raises:
            LanguageError: the source has to be read again, and gives something else.

        Warns:
            RankeditWarning: it has to be read again.
        """
        (texts, _), there = state["texts"], self._source.go_to(state["source"])
        # What can be read once only may have been read up to an earlier place.
        if there or self.texts > texts:
            self._restart()
        if there:
            self.texts, self.taken = state["texts"]
            self._whole, self._own = (int(digits, 16) for digits in state["digests"])
            return
        self._from_front(state)

    def read_again(self, state: Mapping[str, Any]) -> None:
        """Go on from a place by reading up to it, for the source gave other texts behind it.

        Raises:
            LanguageError: it gives something else from the front, too.

        Warns:
            RankeditWarning: always.
        """
        self._source.rewind()
        self._restart()
        self._from_front(state)

    def _restart(self) -> None:
        self._iterator = None
        self.texts, self.taken, self._whole, self._own = 0, 0, 0, 0

    def _from_front(self, state: Mapping[str, Any]) -> None:
        texts, _ = state["texts"]
        warnings.warn(
            f"collect_statistics: this source cannot go on from a place: {texts:,} texts are read "
            "again and left out. Files, folders and streams with state_dict are gone on with.",
            rk.RankeditWarning,
            stacklevel=3,
        )
        while self.texts < texts and self.take() is not None:
            pass
        if f"{self._whole:x}" != state["digests"][0]:
            raise LanguageError(
                f"collect_statistics: the first {texts:,} texts are others than before; go on with "
                "the same ones, or remove the checkpoint to start again."
            )


def _number_of(number: int, text: str) -> int:
    # JSON may have halves of surrogate pairs, which UTF-8 has not.
    data = f"{number}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:16], "big")
