"""What the down-projections of a model read on the user's own text: all layers in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from torch import nn

import rankedit as rk
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.bases import base_marks, check_base
from rankedit_recipes.language.model.layers import Layers, all_blocks, blocks_at
from rankedit_recipes.language.model.running import embedding_device
from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.passes import Passes
from rankedit_recipes.language.texts import Batches, Texts, read_texts

# The last tenth of the data is what convergence is judged by.
_TENTH = 10
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
    """

    def __init__(
        self,
        moments: Mapping[str, rk.SecondMoment],
        changes: Mapping[str, float] | None = None,
        kept: Sequence[Path] = (),
    ) -> None:
        super().__init__(moments)
        self.changes = dict(changes or {})
        self.kept = tuple(kept)

    def remove_checkpoint(self) -> None:
        """Remove what a collection with `Checkpoint(keep=True)` left, once the result is saved."""
        for file in self.kept:
            file.unlink(missing_ok=True)

    def save(self, path: str | PathLike[str], model: nn.Module) -> None:
        """Write the statistics to a file, with marks of the model that they are of."""
        # One text in the file's header: metadata of safetensors is a map from texts to texts.
        changes = ",".join(f"{self.changes.get(name, float('nan')):.3g}" for name in self)
        texts = {"language": "statistics", "edits_change": changes, **base_marks(model, self)}
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
    texts: Texts,
    *,
    layers: Layers = None,
    batch: int = 16,
    length: int | None = None,
    checkpoint: str | PathLike[str] | rk.Checkpoint | None = None,
    corpus: str = "",
    progress: bool = True,
) -> Statistics:
    """Second moments of what the down-projections read, for every block in one pass over the text.

    Padding is left out; the first token of each text, special or not, counts as in ROME.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        texts: a file (one text on each line, or JSON Lines with a `text`), a folder of such files,
            or an iterable of texts or of rows with a `text`, such as a dataset of `datasets`.
        layers: which; all blocks if None.
        batch: texts run together.
        length: texts are cut to so many tokens; the model's own limit, at most 1024, if None.
        checkpoint: file for what is done so far (or a `rankedit.Checkpoint`, which also says how
            often), next to which others of the same beginning are made. After a crash the same
            call goes on there. They are removed at the end; with `Checkpoint(keep=True)` they stay
            until `Statistics.remove_checkpoint`, for what is in memory only can still be lost.
        corpus: a name of the text, for the record.
        progress: show it.

    Raises:
        LanguageError: no text.
    """
    # All in memory: for a digest of the text, and to know where its last tenth begins.
    listed = [text for text in read_texts(texts) if text.strip()]
    if not listed:
        raise LanguageError("collect_statistics: texts must hold at least one text, got none.")
    blocks = all_blocks(model, layers)
    if layers is not None:
        # Not `choose_blocks`, which refuses blocks that cannot share an edit.
        blocks = blocks_at(blocks, layers)
    names = [block.down for block in blocks]
    digest = hashlib.sha256("\0".join(listed).encode()).hexdigest()[:16]
    provenance = rk.Provenance(
        model=type(model).__name__,
        tokenizer=tokenizer_digest(tokenizer),
        corpus=f"{corpus or 'text'} ({len(listed)} texts, {digest})",
    )
    limit = length or _longest(model)
    # Both parts have at least one text; a single text has no last tenth.
    first = max(1, len(listed) - max(1, len(listed) // _TENTH)) if len(listed) > 1 else 1
    # No more than `passes.PARTS`.
    passes = [listed[:first], listed[first:]] if len(listed) > 1 else [listed]
    kept = rk.Checkpoint(checkpoint) if isinstance(checkpoint, (str, PathLike)) else checkpoint
    collector = Passes(model, names, provenance, limit, kept, progress=progress)
    parts = [
        collector.collect(number, Batches(part, tokenizer, batch, limit, embedding_device(model)))
        for number, part in enumerate(passes)
    ]
    found = Statistics(*collector.joined(parts), kept=collector.files())
    if kept is not None and not kept.keep:
        found.remove_checkpoint()
    return found


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
    return Statistics(moments, {n: v for n, v in numbers.items() if v == v})


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
