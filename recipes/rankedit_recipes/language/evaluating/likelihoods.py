"""How likely a causal model finds given continuations of given texts, many at once."""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankedit.progress import progress as show_progress
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.chatting import check_words, template_of
from rankedit_recipes.language.model.running import embedding_device
from rankedit_recipes.language.model.tokens import Encoded, encoded

BATCH_TOKENS = 8192
Pair = tuple[str, str]


@dataclass(frozen=True)
class Likelihoods:
    """What a model makes of `n` continuations.

    Attributes:
        losses: `[n]`, mean negative log-likelihood of a continuation's tokens, in nats.
        accuracies: `[n]`, share of its tokens that the model finds the likeliest of all, given the
            right ones before (teacher forcing).
    """

    losses: Tensor
    accuracies: Tensor

    @property
    def probabilities(self) -> Tensor:
        """`[n]`, `exp(-loss)`: the geometric mean of the tokens' probabilities."""
        return (-self.losses).exp()


@dataclass(frozen=True)
class _Read:
    """Token ids of a text with its continuation, and where the continuation begins."""

    ids: tuple[int, ...]
    first: int


def likelihoods(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401 - a fast tokenizer of transformers
    pairs: Sequence[Pair],
    *,
    batch_tokens: int = BATCH_TOKENS,
    chat: bool | Sequence[bool] = False,
    progress: bool = False,
) -> Likelihoods:
    """Likelihoods of pairs of a text and its continuation.

    Texts of one length run together, without padding, so that a batch gives what one by one gives;
    what several pairs have in common runs once.

    Args:
        model: a causal model of transformers, edited or not; runs in evaluation mode.
        tokenizer: its fast tokenizer.
        pairs: text and continuation, which are tokenised together; the continuation brings its
            own leading space.
        batch_tokens: tokens in one forward pass, at most.
        chat: whether the text is a turn of the user and the continuation begins the assistant's, of
            all pairs or of each.
        progress: show it.

    Raises:
        LanguageError: an empty text or continuation, a chat without a template, or a model that
            gives NaN.
    """
    reads = encode_pairs(tokenizer, pairs, chat=chat)
    # Sums over tokens in float64, so that the order of batches does not show.
    losses, hits = torch.zeros(len(pairs), dtype=torch.float64), torch.zeros(len(pairs))
    device = embedding_device(model)
    batches = list(batched(reads, batch_tokens))
    with (
        torch.inference_mode(),
        evaluating(model),
        show_progress("evaluate", len(batches), shown=progress) as advance,
    ):
        for rows in batches:
            inputs = torch.tensor([sequence for sequence, _ in rows], device=device)
            wanted = [
                (row, position, owner)
                for row, (_, owners) in enumerate(rows)
                for owner in owners
                for position in range(reads[owner].first - 1, inputs.shape[1])
            ]
            row, position, owner = torch.tensor(wanted).T
            token = torch.tensor([reads[o].ids[p + 1] for _, p, o in wanted])
            logits = predictions(model, inputs, row, position)
            log = logits.log_softmax(-1).gather(1, token.to(device)[:, None])[:, 0]
            losses.index_add_(0, owner, -log.double().cpu())
            right = (logits.argmax(-1) == token.to(device)).float().cpu()
            hits.index_add_(0, owner, right)
            advance(f"{len(rows)} texts")
    counts = torch.tensor([len(read.ids) - read.first for read in reads])
    # No comparison with NaN holds: a broken model would score as a poor one.
    if bool(losses.isnan().any()):
        raise LanguageError(
            "likelihoods: the model gives NaN; an edit in it, or its precision, has broken it. "
            "Take the edits out, or compute in float32."
        )
    return Likelihoods(losses / counts, hits / counts)


def encode_pairs(
    tokenizer: Any,  # noqa: ANN401
    pairs: Sequence[Pair],
    *,
    chat: bool | Sequence[bool] = False,
) -> list[_Read]:
    """Token ids of each pair as one text, without special tokens behind it.

    Raises:
        LanguageError: a tokenizer without offsets, or an empty text or continuation.
    """
    if not tokenizer.is_fast:
        raise LanguageError(
            "likelihoods: the tokenizer must be a fast one, whose tokens know where in the text "
            f"they begin and end; got {type(tokenizer).__name__}. Load it with use_fast=True."
        )
    chats = [chat] * len(pairs) if isinstance(chat, bool) else list(chat)
    template = template_of(tokenizer) if any(chats) else None
    said = list(pairs)
    for i, (text, continuation) in enumerate(pairs):
        if chats[i] and template is not None:
            check_words(tokenizer, template, text)
            said[i] = (template.around(text), template.answer(continuation))
    # Marks of the template are in its text: the tokenizer must not add them once more.
    plain = [not each for each in chats]
    found = encoded(tokenizer, ["".join(pair) for pair in said], special=plain)
    return [_read(pair, each) for pair, each in zip(said, found, strict=True)]


def _read(pair: Pair, found: Encoded) -> _Read:
    border = len(pair[0])
    # The first token that reaches beyond the text: one may hold its last and the next characters.
    first = next((i for i, (_, end) in enumerate(found.spans) if end > border), -1)
    if first < 1:
        raise LanguageError(
            "likelihoods: a text with at least one token and a continuation with at least one are "
            f"expected, got {pair[0]!r:.200} and {pair[1]!r:.200}."
        )
    return _Read(tuple(found.ids), first)


def batched(
    reads: Sequence[_Read], batch_tokens: int
) -> Iterator[list[tuple[tuple[int, ...], list[int]]]]:
    """What the model must read, each once, in batches of one length; with the pairs it serves."""
    owners: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, read in enumerate(reads):
        # The last token is only predicted; pairs that differ in nothing else share their reading.
        owners[read.ids[:-1]].append(index)
    groups: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for sequence in owners:
        groups[len(sequence)].append(sequence)
    # Without padding a row's numbers do not depend on its neighbours.
    for length, sequences in sorted(groups.items()):
        size = max(1, batch_tokens // length)
        for start in range(0, len(sequences), size):
            yield [(s, owners[s]) for s in sequences[start : start + size]]


def predictions(model: nn.Module, inputs: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """Logits `[m, vocabulary]` in float32 behind chosen tokens of `inputs [n, length]`."""
    # From the first that somebody asks for; transformers 5.23 counts `logits_to_keep` from the end.
    kept = inputs.shape[1] - int(position.min())
    # Large vocabularies: logits of positions that nobody asks for are the larger part of the work.
    options = {"logits_to_keep": kept} if takes(model, "logits_to_keep") else {}
    logits: Tensor = run(model, inputs, **options).logits
    # Right with and without `logits_to_keep`: positions count from the end of what there is.
    return logits[row, position - inputs.shape[1] + logits.shape[1]].float()


def run(model: nn.Module, ids: Tensor, **options: Any) -> Any:  # noqa: ANN401
    """What the model gives for `ids [n, length]` without padding, keeping nothing for later."""
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)


def takes(model: nn.Module, name: str) -> bool:
    """Whether the model's `forward` has an argument of this name."""
    # A model that takes any keyword may do nothing with this one.
    return name in inspect.signature(model.forward).parameters


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of the block; each module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
