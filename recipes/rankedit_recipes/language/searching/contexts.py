"""What stands before a prompt, so that a fact does not hang on one way to begin a text.

ROME and MEMIT put sentences before the prompt that the model itself writes. They are sampled here
with a generator of their own, so that the same seed gives the same ones, and no other random number
in the program changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.running import embedding_device, quiet
from rankedit_recipes.language.model.tokens import Tokenizer, encoded
from rankedit_recipes.language.requests import continued

# What MEMIT's sentences start with; ROME's start with nothing.
STARTS = ("The", "Therefore", "Because", "I", "You")
_BEST = 5


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
