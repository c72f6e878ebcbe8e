"""What the down-projections of a model read on the user's own text: all layers in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from torch import nn

import rankedit as rk
from rankedit.sharding import warn_of_missing
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.language.batching import Batches
from rankedit_recipes.language.corpus import Corpus
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.bases import base_marks, check_base
from rankedit_recipes.language.model.layers import Layers, all_blocks, blocks_at
from rankedit_recipes.language.model.running import embedding_device
from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.passes import PARTS, Passes
from rankedit_recipes.language.sources import Source, source_of
from rankedit_recipes.language.texts import Texts

# Below so many tokens per input, directions are left that were hardly seen.
_PER_INPUT = 10
# A change over the last tenth that edits hardly notice: that of Gaussian vectors at just ten for
# each input is √(1/90), 0.105.
_CALM = 0.1
# As in ROME: longer texts are cut, or their length would be the memory's limit.
_LONGEST = 1024


class Statistics(dict[str, rk.SecondMoment]):
    """Second moments by projection, and how much they changed in the end.

    Attributes:
        changes: by projection, how much edits change that are made with C in place of C' from the
            first nine tenths of the data; see `rankedit.relative_change`.
        kept: files from which the same collection would go on; see `remove_checkpoint`.
        mark: of a shard of a larger corpus, what `rankedit.merge_shards` compares; else empty.
    """

    def __init__(
        self,
        moments: Mapping[str, rk.SecondMoment],
        changes: Mapping[str, float] | None = None,
        kept: Sequence[Path] = (),
        mark: str = "",
    ) -> None:
        super().__init__(moments)
        self.changes = dict(changes or {})
        self.kept = tuple(kept)
        self.mark = mark

    def remove_checkpoint(self) -> None:
        """Remove what a collection with `Checkpoint(keep=True)` left, once the result is saved."""
        for file in self.kept:
            file.unlink(missing_ok=True)

    def save(self, path: str | PathLike[str], model: nn.Module) -> None:
        """Write the statistics to a file, with marks of the model that they are of.

        Under FSDP the weights are gathered for that, so that every process must make the call.
        """
        # One text in the file's header: metadata of safetensors is a map from texts to texts.
        changes = ",".join(f"{self.changes.get(name, float('nan')):.3g}" for name in self)
        texts = {"language": "statistics", "edits_change": changes, **base_marks(model, self)}
        texts |= {"shard": self.mark} if self.mark else {}
        rk.save(self, path, metadata=texts, model=model)

    def describe(self) -> str:
        """A table: tokens, effective rank, and what the last tenth of the data changed of edits."""
        lines = [f"{'projection':40} {'tokens':>10} {'effective rank':>18} {'last tenth':>11}"]
        for name, moment in self.items():
            rank = f"{moment.effective_rank:.1f} of {moment.dim}"
            change = f"{self.changes[name]:.2%}" if name in self.changes else "unknown"
            lines.append(f"{name[-40:]:40} {moment.count:>10,.0f} {rank:>18} {change:>11}")
        lines.append(self._advice())
        return "\n".join(lines)

    def _advice(self) -> str:
        worst = max(self.changes.values(), default=0.0)
        wanted = {name: _PER_INPUT * moment.dim for name, moment in self.items()}
        few = [name for name, moment in self.items() if moment.count < wanted[name]]
        if few:
            most = max(wanted[name] for name in few)
            which = counted(len(few), "projection has", "projections have")
            return (
                f"{which} fewer than ten tokens per input: use more text, at least {most:,} tokens."
            )
        if not self.changes:
            return "How much the last tenth of the text changes edits was not measured."
        if worst > _CALM:
            return (
                f"The last tenth of the text changes edits by up to {worst:.1%}: more would help."
            )
        return (
            f"The last tenth of the text changes edits by at most {worst:.1%}: this much suffices."
        )


def collect_statistics(
    model: nn.Module,
    tokenizer: Tokenizer,
    texts: Texts | Source,
    *,
    layers: Layers = None,
    batch: int = 16,
    length: int | None = None,
    checkpoint: str | PathLike[str] | rk.Checkpoint | None = None,
    corpus: str = "",
    shard: rk.Shard | None = None,
    count: int = 0,
    progress: bool = True,
) -> Statistics:
    """Second moments of what the down-projections read, for every block in one pass over the text.

    Padding is left out; the first token of each text, special or not, counts as in ROME. The text
    is read as it is needed: a thousand texts, or 64 batches, are in memory.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        texts: a file (one text on each line, or JSON Lines with a `text`), a folder of such files,
            `"-"` for the standard input, or an iterable of texts or of rows with a `text`, such as
            a dataset of `datasets`, a streaming one too. An iterator is read into memory first.
            Where nobody knows where the last tenth begins (pipes, streams), how much it changes is
            not measured, unless `count` says it.
        layers: which; all blocks if None.
        batch: texts run together.
        length: texts are cut to so many tokens; the model's own limit, at most 1024, if None.
        checkpoint: file for what is done so far (or a `rankedit.Checkpoint`, which also says how
            often), next to which others of the same beginning are made. After a crash the same
            call goes on there. They are removed at the end; with `Checkpoint(keep=True)` they stay
            until `Statistics.remove_checkpoint`, for what is in memory only can still be lost.
            Files, lists and what has `state_dict` are not read again from the front; others are.
        corpus: a name of the text, for the record.
        shard: which part of the text to read, text k that of number `k mod count + 1`. Files of all
            parts are added by `rankedit.merge_shards`, or `rankedit stats merge`.
        count: texts at most, of all shards together; 0 for all.
        progress: show it.

    Raises:
        LanguageError: no text, or sizes below 1.
    """
    for what, size in (("batch", batch), ("length", 1 if length is None else length)):
        if size < 1:
            raise LanguageError(f"collect_statistics: {what} must be at least 1, got {size}.")
    blocks = all_blocks(model, layers)
    if layers is not None:
        # Not `choose_blocks`, which refuses blocks that cannot share an edit.
        blocks = blocks_at(blocks, layers)
    source = Corpus(source_of(texts), shard, count)
    name, limit = corpus or "text", length or _longest(model)
    provenance = rk.Provenance(
        model=type(model).__name__,
        tokenizer=tokenizer_digest(tokenizer),
        # Until it was read: what it holds is known at its end.
        corpus=f"{name} ({source.mark()})",
    )
    kept = rk.Checkpoint(checkpoint) if isinstance(checkpoint, (str, PathLike)) else checkpoint
    names = [block.down for block in blocks]
    collector = Passes(model, names, provenance, limit, kept, progress=progress)
    device = embedding_device(model)
    parts = [
        # The first nine tenths, then the last one: no more than `passes.PARTS`.
        collector.collect(n, Batches(source, tokenizer, batch, limit, device, to_last=n == 0))
        for n in range(PARTS)
    ]
    if not any(parts):
        raise LanguageError(_no_text(source))
    moments, changes = collector.joined([part for part in parts if part])
    for moment in moments.values():
        moment.provenance = replace(moment.provenance, corpus=f"{name} ({source.described()})")
    settings = {"length": limit, "texts at most": count}
    # Without the name, which is a path that other machines may have elsewhere.
    mark = shard.mark(source.described(), settings) if shard else ""
    found = Statistics(moments, changes, collector.files(), mark)
    if kept is not None and not kept.keep:
        found.remove_checkpoint()
    return found


def _no_text(source: Corpus) -> str:
    if not source.texts:
        return "collect_statistics: texts must hold at least one text, got none."
    return (
        f"collect_statistics: none of {source.texts} texts is in this shard; take no more shards "
        "than there are texts."
    )


def load_statistics(
    path: str | PathLike[str], model: nn.Module, tokenizer: Tokenizer | None = None
) -> Statistics:
    """Read what `Statistics.save` wrote.

    Raises:
        LanguageError: it holds no statistics, or those of another tokenizer.
        EditFileError: it is damaged, or the statistics are those of another model.
    """
    loaded = rk.load(path)
    moments = {n: m for n, m in loaded.items() if isinstance(m, rk.SecondMoment)}
    if not moments or loaded.metadata.get("language") != "statistics":
        raise LanguageError(
            f"load_statistics: '{path}' holds no statistics of a language model; make it with "
            "collect_statistics(...).save(path, model)."
        )
    # Moments of another model fit by shape and give edits that look right.
    check_base(model, loaded)
    check_statistics(moments, tokenizer)
    texts = loaded.metadata.get("edits_change", "").split(",")
    numbers = dict(zip(moments, map(_number, texts), strict=False))
    mark = loaded.metadata.get("shard", "")
    warn_of_missing("load_statistics", path, mark)
    return Statistics(moments, {n: v for n, v in numbers.items() if v == v}, mark=mark)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def statistics_of(
    given: Mapping[str, rk.SecondMoment] | str | PathLike[str],
    model: nn.Module,
    tokenizer: Tokenizer,
    names: Sequence[str],
) -> Mapping[str, rk.SecondMoment]:
    """Statistics for these projections of the model, from memory or from a file.

    Raises:
        LanguageError: some are missing, or they are of another tokenizer or width.
    """
    moments = given if isinstance(given, Mapping) else load_statistics(given, model, tokenizer)
    check_statistics(moments, tokenizer)
    for name in names:
        width = rk.Projection(model.get_submodule(name)).in_features
        if name not in moments or moments[name].dim != width:
            found = f"of width {moments[name].dim}" if name in moments else "none"
            raise LanguageError(
                f"language: statistics of '{name}' must be of width {width}, got {found}; collect "
                "them on this model, with the same layers."
            )
    return moments


def check_statistics(moments: Mapping[str, rk.SecondMoment], tokenizer: Tokenizer | None) -> None:
    """Refuse statistics that were collected with another tokenizer."""
    if tokenizer is None:
        return
    digest = tokenizer_digest(tokenizer)
    for name, moment in moments.items():
        # Empty where somebody collected with `rk.collect` and told no tokenizer.
        if moment.provenance.tokenizer not in ("", digest):
            raise LanguageError(
                f"language: statistics of '{name}' were collected with another tokenizer "
                f"({moment.provenance.tokenizer}, this one is {digest}); collect them again."
            )


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """A mark of a tokenizer's vocabulary."""
    # Of words and numbers, not of a file: a tokenizer that was saved anew is the same.
    words = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _longest(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    # Not the tokenizer's `model_max_length`, which is 1e30 where nobody has set it.
    declared = getattr(config, "max_position_embeddings", None)
    return min(declared, _LONGEST) if isinstance(declared, int) else _LONGEST
