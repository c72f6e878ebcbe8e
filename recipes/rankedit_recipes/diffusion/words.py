"""New words in a pipeline: tokens with embeddings beside the text encoder's own table.

The table is never resized and no weight is touched: the embedding layer's class is swapped for one
that puts the new rows where the new tokens stand, and swapped back; the tokenizers are copies. So
rows may be leaves that are being learned, and taking the words out restores the pipeline exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.text import Texts, Tokenizer, word_tokens
from rankedit_recipes.diffusion.vectors import check_vectors, extended_tokenizer, vector_names

# CLIP configurations of before 2023 say 2 here; their models then take the highest token number
# for the end of the text, which a new word would be.
_LEGACY_EOS = 2
_LOAD, _UNLOAD = "load_textual_inversion", "unload_textual_inversion"


class _WithNewWords(nn.Module):
    """What comes before an embedding layer's own class while new words are in."""

    _new_rows: dict[int, tuple[Tensor, int]]
    num_embeddings: int

    def forward(self, tokens: Tensor) -> Tensor:
        # The table is asked for a row that it has, whatever it is: the new row takes its place
        # below.
        known = tokens.where(tokens < self.num_embeddings, 0)
        found: Tensor = super().forward(known)
        for token, (rows, index) in self._new_rows.items():
            row = rows if rows.ndim == 1 else rows[index]
            found = torch.where((tokens == token)[..., None], row.to(found), found)
        return found


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _with_new_words(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _classes:
        _classes[base] = type(f"{base.__name__}WithNewWords", (_WithNewWords, base), {})
    return _classes[base]


def check_trigger(texts: Texts, trigger: str, vectors: int = 1) -> None:
    """Refuse a word that cannot stand for something new.

    The vocabulary is asked, and the word must come back from a round trip through the tokenizer:
    `add_tokens` tells neither that a word exists nor that normalisation would change it.

    Args:
        texts: of the pipeline.
        trigger: the word.
        vectors: how many it has.

    Raises:
        PipelineError: empty, with white space, known already, or not found again in a text.
    """
    if not trigger or trigger.split() != [trigger]:
        raise PipelineError(
            f"diffusion: the placeholder must be one word without spaces, got {trigger!r}; "
            "for example '<bean>'."
        )
    for suffix, _, tokenizer in texts.encoders:
        known = tokenizer.get_vocab()
        # Byte-pair tokenizers mark the end of a word (CLIP) or its beginning (sentencepiece).
        taken = [t for t in (trigger, f"{trigger}</w>", f"▁{trigger}") if t in known]
        single = word_tokens(tokenizer, trigger)
        if taken or (len(single) == 1 and single[0] != tokenizer.unk_token_id):
            raise PipelineError(
                f"diffusion: {trigger!r} is already a word of tokenizer{suffix}; choose one that "
                f"it does not know, for example '<{trigger.strip('<>')}-1>'."
            )
        check_vectors(tokenizer, {trigger: vectors})
        extended_tokenizer(tokenizer, {trigger: vectors})


def check_known(texts: Texts, category: str, role: str = "category") -> None:
    """Refuse a category, or an adjective, that the model has no words for: learning starts there.

    Raises:
        PipelineError: empty, or with a word that a tokenizer does not know; names the role.
    """
    for suffix, _, tokenizer in texts.encoders:
        unknown = [
            word
            for word in category.split()
            if tokenizer.unk_token_id in word_tokens(tokenizer, word)
        ]
        if unknown or not word_tokens(tokenizer, category):
            known = "cat" if role == "category" else "new"
            raise PipelineError(
                f"diffusion: the {role} must be a word or two that the model knows, such as "
                f"{known!r}, got {category!r}; tokenizer{suffix} does not know {unknown}."
            )


class NewWords:
    """Words in a pipeline, until they are taken out.

    While they are in, the pipeline can be saved: what is written is the pipeline without them.
    Other words cannot be added, for they would be lost with these.

    Args:
        texts: of the pipeline.
        rows: by word one embedding for each text encoder, `[width]` or `[vectors, width]`; used as
            they are, so that rows that require gradients receive them.

    Raises:
        PipelineError: a word that cannot be added, or rows of another number or width.
    """

    def __init__(self, texts: Texts, rows: Mapping[str, Sequence[Tensor]]) -> None:
        self._pipe = texts.pipe
        encoders = texts.encoders
        for trigger, given in rows.items():
            _check_rows(trigger, given, encoders)
            check_trigger(texts, trigger, _vectors(given))
        counts = {trigger: _vectors(given) for trigger, given in rows.items()}
        for _, _, tokenizer in encoders:
            check_vectors(tokenizer, counts)
        layers = [embedding_layers(encoder) for _, encoder, _ in encoders]
        _check_free(layers)
        tokenizers = [extended_tokenizer(tokenizer, counts) for *_, tokenizer in encoders]
        self._tokenizers: list[tuple[str, Tokenizer, Tokenizer]] = []
        self._layers: list[nn.Module] = []
        self._ends: list[tuple[Any, int]] = []
        try:
            for index, (suffix, encoder, old) in enumerate(encoders):
                new, name = tokenizers[index], f"tokenizer{suffix}"
                new.add_tokens = functools.partial(_refuse_tokens, list(rows))
                new.save_pretrained = old.save_pretrained
                self._tokenizers.append((name, old, new))
                setattr(self._pipe, name, new)
                vocabulary = new.get_vocab()
                own = {
                    vocabulary[name]: (given[index], number)
                    for trigger, given in rows.items()
                    for number, name in enumerate(vector_names(trigger, counts[trigger]))
                }
                for layer in layers[index]:
                    self._layers.append(_extend(layer, own))
                self._mend_ends(encoder, old)
            if hasattr(self._pipe, _UNLOAD):
                # It numbers the words anew and exchanges the embedding layer. The other one makes
                # that larger before it asks the tokenizer (diffusers 0.42).
                setattr(self._pipe, _UNLOAD, functools.partial(_refuse_removal, list(rows)))
                setattr(self._pipe, _LOAD, functools.partial(_refuse_tokens, list(rows)))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the words out; the pipeline is what it was."""
        for layer in self._layers:
            base = next(c for c in type(layer).__bases__ if c is not _WithNewWords)
            _swap(layer, base)
            del layer.__dict__["_new_rows"]
        for name, old, new in self._tokenizers:
            # Another tokenizer was put there meanwhile: that is not ours to take away.
            if getattr(self._pipe, name) is new:
                setattr(self._pipe, name, old)
            # Pipelines that were made of this one's parts have the copy, and no rows for the words.
            new.__class__ = type(old)
            new.__dict__.clear()
            new.__dict__.update(vars(old))
        for module, end in self._ends:
            module.eos_token_id = end
        # The instance's attributes hid the class's methods.
        for name in (_LOAD, _UNLOAD):
            self._pipe.__dict__.pop(name, None)
        self._layers, self._tokenizers, self._ends = [], [], []

    def _mend_ends(self, encoder: nn.Module, tokenizer: Tokenizer) -> None:
        # A part of the encoder took the number when it was made: the configuration is too late
        # (transformers 5.23).
        for module in encoder.modules():
            if vars(module).get("eos_token_id") == _LEGACY_EOS != tokenizer.eos_token_id:
                self._ends.append((module, _LEGACY_EOS))
                module.eos_token_id = tokenizer.eos_token_id


def embedding_layers(encoder: nn.Module) -> list[nn.Module]:
    """The token embedding of a text encoder; several layers where one table is shared."""
    own = encoder.get_input_embeddings()  # type: ignore[operator]
    table = getattr(own, "weight", None)
    # T5 of transformers 5 has one table in two layers, and calls the second.
    shared = [m for m in encoder.modules() if m is not own and getattr(m, "weight", 0) is table]
    return [own, *(m for m in shared if isinstance(m, nn.Embedding))]


def embedding_width(encoder: nn.Module) -> int:
    """Width of a text encoder's token embeddings."""
    layer: Any = embedding_layers(encoder)[0]
    return int(layer.embedding_dim)


def embedding_of(encoder: nn.Module, token: int) -> Tensor:
    """The embedding `[width]` of a token, float32, by running the embedding layer."""
    layer = embedding_layers(encoder)[0]
    device = next(encoder.parameters()).device
    # Weights that accelerate keeps on disk are fetched by the layer's own hook when it runs.
    if device.type == "meta":
        device = torch.device("cpu")
    with torch.no_grad():
        found: Tensor = layer(torch.tensor([token], device=device))[0]
    return found.detach().float()


def _check_free(layers: Sequence[Sequence[nn.Module]]) -> None:
    if any(isinstance(layer, _WithNewWords) for own in layers for layer in own):
        raise PipelineError(
            "diffusion: a text encoder of this pipeline has new words already: another pipeline "
            "that shares it has concepts in. Take them out there first, or apply all concepts in "
            "one of the two."
        )


def _refuse_tokens(words: Sequence[str], *_: object, **__: object) -> int:
    raise PipelineError(
        f"diffusion: no words can be added while {', '.join(words)} are in the pipeline; take them "
        "out first (perfusion.unload), add yours, such as by load_textual_inversion, and put them "
        "in again."
    )


def _refuse_removal(words: Sequence[str], *_: object, **__: object) -> None:
    raise PipelineError(
        f"diffusion: no words can be taken away while {', '.join(words)} are in the pipeline; take "
        f"them out first (perfusion.unload), call {_UNLOAD}, and put them in again."
    )


def _vectors(rows: Sequence[Tensor]) -> int:
    """How many vectors a word has whose rows these are."""
    return 1 if rows[0].ndim == 1 else len(rows[0])


def _check_rows(trigger: str, rows: Sequence[Tensor], encoders: Sequence[Any]) -> None:
    widths = [embedding_width(encoder) for _, encoder, _ in encoders]
    given = [row.shape[-1] for row in rows]
    if given != widths:
        raise PipelineError(
            f"diffusion: {trigger!r} has embeddings of widths {given}, but the pipeline's text "
            f"encoders have {widths}; they were learned for another kind of model."
        )
    shapes = [list(row.shape) for row in rows]
    if any(shape[:-1] != shapes[0][:-1] or len(shape) > 2 for shape in shapes):
        raise PipelineError(
            f"diffusion: {trigger!r} must have as many vectors in each text encoder, [width] or "
            f"[vectors, width], got {shapes}."
        )


def _extend(layer: nn.Module, rows: dict[int, tuple[Tensor, int]]) -> nn.Module:
    _swap(layer, _with_new_words(type(layer)))
    layer.__dict__["_new_rows"] = rows
    return layer


def _swap(layer: nn.Module, cls: type[nn.Module]) -> None:
    layer.__class__ = cls
    # An offloading hook keeps the layer's own forward here, bound to the class of before.
    if isinstance(vars(layer).get("_old_forward"), MethodType):
        layer.__dict__["_old_forward"] = MethodType(cls.forward, layer)
