"""What stands before a prompt, so that a fact does not hang on one way to begin a text.

ROME and MEMIT put sentences before the prompt that the model itself writes. They are sampled here
with a generator of their own, so that the same seed gives the same ones, and no other random number
in the program changes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.running import embedding_device, quiet
from rankedit_recipes.language.model.tokens import Tokenizer, encoded
from rankedit_recipes.language.requests import continued
from rankedit_recipes.language.texts import Texts, read_texts

# What MEMIT's sentences start with; ROME's start with nothing.
STARTS = ("The", "Therefore", "Because", "I", "You")
_BEST = 5
# Behind a mark that ends a sentence; in the Latin script a space follows, and no small letter, as
# behind "e.g.". The closing mark of a quotation stays with its sentence.
_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”’)]))\s+(?![a-z])|(?<=[。！？])(?![」』”’）])|(?<=[。！？][」』”’）])"
)
_MARKS = tuple(".!?。！？")
# So many sentences are looked at: enough to find any length, and soon read.
_SENTENCES = 20_000


def sample_prefixes(
    model: nn.Module, tokenizer: Tokenizer, lengths: Sequence[int], *, seed: int = 0
) -> list[str]:
    """Sentences that the model writes, each followed by `". "`.

    Sampled from the five likeliest tokens at each place, as in ROME (Meng et al., arXiv 2202.05262,
    appendix E.5).

    Args:
        model: the model.
        tokenizer: its tokenizer.
        lengths: of each sentence, in tokens beyond its first.
        seed: of the sampling.

    Returns:
        As many texts; they are put before a prompt as they are.
    """
    if not lengths:
        return []
    starts = [STARTS[number % len(STARTS)] for number in range(len(lengths))]
    written = []
    # One batch for each start: rows that begin with as many tokens need no padding.
    for number, start in enumerate(dict.fromkeys(starts)):
        same = [lengths[i] for i, s in enumerate(starts) if s == start]
        # One for each start and seed; the sum of the two would give two seeds sentences in common.
        generator = torch.Generator().manual_seed(seed * len(STARTS) + number)
        # Without the end that some tokenizers put behind a text: the sentence goes on.
        begun = torch.tensor([encoded(tokenizer, [start])[0].ids]).expand(len(same), -1)
        ids = _sampled(model, begun, max(same), generator)
        for row, length in zip(ids, same, strict=True):
            # All rows are written to the longest; shorter ones are their beginnings.
            words = row[: begun.shape[1] + length]
            written.append(tokenizer.decode(words, skip_special_tokens=True))
    # A line's end in a sentence would make the prompt behind it another text.
    return [f"{' '.join(text.split())}. " for text in written]


def prefixes_from(
    texts: Texts, tokenizer: Tokenizer, lengths: Sequence[int], *, seed: int = 0
) -> list[str]:
    """Sentences of the user's own text, to put before prompts.

    For each length a sentence of about as many tokens: among those that are nearest to it the one
    that the seed draws. No two are the same.

    Args:
        texts: as `collect_statistics` takes them; the first 20,000 sentences are looked at.
        tokenizer: the model's.
        lengths: of each sentence, in tokens, such as `Settings.contexts`.
        seed: of what is drawn.

    Returns:
        As many texts; they are put before a prompt as they are.

    Raises:
        LanguageError: fewer sentences than lengths.
    """
    found = dict.fromkeys(itertools.islice(_sentences(texts), _SENTENCES))
    if len(found) < len(lengths):
        raise LanguageError(
            f"prefixes_from: {len(lengths)} different sentences are needed, got {len(found)}; give "
            "more text, or prefixes of your own."
        )
    sizes = [len(each.ids) for each in encoded(tokenizer, list(found), special=False)]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    left = [(sizes[i], list(found)[i]) for i in order]
    chosen = []
    for length in lengths:
        # The first of the nearest ones, in the order that was drawn.
        best = min(left, key=lambda each: abs(each[0] - length))
        left.remove(best)
        chosen.append(best[1])
    return list(checked_prefixes(chosen))


def _sentences(texts: Texts) -> Iterator[str]:
    for text in read_texts(texts):
        # A line's end in a sentence would make the prompt behind it another text.
        for part in map(str.strip, _END.split(" ".join(text.split()))):
            # Of letters, and whole: what is cut off at either end begins small or has no mark.
            if part[-1:] in _MARKS and part[0].isalnum() and not part[0].islower():
                yield part


def _sampled(model: nn.Module, ids: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    device = embedding_device(model)
    with quiet(model):
        for _ in range(steps):
            given = ids.to(device)
            output = model(input_ids=given, attention_mask=torch.ones_like(given), use_cache=False)
            # On the CPU in float32: draws do not depend on the device.
            best = output.logits[:, -1].float().cpu().topk(_BEST)
            drawn = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, best.indices.gather(1, drawn)], 1)
    return ids


def checked_prefixes(prefixes: Sequence[str]) -> tuple[str, ...]:
    """Texts that a user wants before the prompts.

    Raises:
        LanguageError: something that is no text.
    """
    if isinstance(prefixes, str) or not all(isinstance(text, str) for text in prefixes):
        raise LanguageError(f"language: prefixes must be a list of texts, got {prefixes!r:.80}.")
    # The prompt follows as a target does: after a space, where the script has such.
    return tuple(f"{text}{continued('', text)}" if text else text for text in prefixes)
