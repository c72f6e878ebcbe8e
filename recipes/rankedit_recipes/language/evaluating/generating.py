"""Texts that a model writes, and how varied their words are."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.likelihoods import evaluating
from rankedit_recipes.language.model.chatting import check_words, template_of
from rankedit_recipes.language.model.running import embedding_device

LENGTH = 100
TOP_K = 5
_BATCH = 64
# Words and marks: near NLTK's tokenizer, which CounterFact's authors used.
_WORD = re.compile(r"\w+|[^\w\s]")


def generate(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401 - a tokenizer of transformers
    prompts: Sequence[str],
    *,
    length: int = LENGTH,
    more: int | None = None,
    top_k: int = TOP_K,
    seed: int = 0,
    chat: bool | Sequence[bool] = False,
    whole: bool = True,
) -> list[str]:
    """Texts that go on from prompts, each prompt included, of `length` tokens in all.

    Each token is drawn from the `top_k` likeliest ones. What is drawn depends on the seed and on
    the prompt's place in the list, not on how prompts are batched.

    Args:
        model: a causal model of transformers.
        tokenizer: its tokenizer.
        prompts: texts to go on with.
        length: tokens of prompt and continuation together; fewer if the model ends the text or
            takes no longer ones.
        more: tokens of each continuation instead, whatever the prompt's length.
        top_k: how many tokens are drawn from; 1 always takes the likeliest.
        seed: of what is drawn.
        chat: whether a prompt is what the user says, of all or of each; the text is then the
            prompt, and on the next line what the assistant says.
        whole: False for what follows the prompt alone.

    Raises:
        LanguageError: an empty prompt, no list of them, or a chat without a template.
    """
    # A text is a sequence too, of letters.
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise LanguageError(
            f"generate: prompts must be a list of texts, got {prompts!r:.80}; put one into a list."
        )
    chats = [chat] * len(prompts) if isinstance(chat, bool) else list(chat)
    ids = [
        _chat_ids(tokenizer, prompt) if said else _prompt_ids(tokenizer, prompt)
        for prompt, said in zip(prompts, chats, strict=True)
    ]
    longest = length if more is None else max(map(len, ids), default=0) + more
    limit = min(longest, getattr(model.config, "max_position_embeddings", None) or longest)
    # All numbers are drawn beforehand, a row for each prompt: batches cannot change what is drawn.
    uniform = torch.rand(len(prompts), max(1, limit), generator=torch.Generator().manual_seed(seed))
    groups: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(ids):
        # Only prompts of one length together: padding would shift positions in some models.
        groups[len(row)].append(index)
    texts = [""] * len(prompts)
    with torch.inference_mode(), evaluating(model):
        for begun, indices in groups.items():
            last = limit if more is None else min(limit, begun + more)
            for start in range(0, len(indices), _BATCH):
                chosen = indices[start : start + _BATCH]
                rows = torch.tensor([ids[i] for i in chosen], device=embedding_device(model))
                written = _go_on(model, rows, uniform[chosen], last, top_k)
                for index, row in zip(chosen, written.tolist(), strict=True):
                    if not whole:
                        texts[index] = _text(tokenizer, row[begun:], 0)
                    elif chats[index]:
                        answer = _text(tokenizer, row[begun:], 0).strip()
                        texts[index] = f"{prompts[index]}\n{answer}"
                    else:
                        texts[index] = _text(tokenizer, row, begun)
    return texts


def _chat_ids(tokenizer: Any, prompt: str) -> list[int]:  # noqa: ANN401
    template = template_of(tokenizer)
    check_words(tokenizer, template, prompt)
    # The template has its special tokens in it.
    ids: list[int] = tokenizer(template.around(prompt), add_special_tokens=False)["input_ids"]
    return ids


def _prompt_ids(tokenizer: Any, prompt: str) -> list[int]:  # noqa: ANN401
    ids: list[int] = tokenizer(prompt)["input_ids"]
    end = tokenizer.eos_token_id
    # A mark of the beginning that is written out stands once.
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id and end != ids[0]:
        ids = ids[1:]
    # A tokenizer that ends every text would have the model begin another one.
    while len(ids) > 1 and end is not None and ids[-1] == end:
        ids = ids[:-1]
    if not ids:
        raise LanguageError("generate: a prompt with at least one token is expected, got ''.")
    return ids


def _go_on(model: nn.Module, ids: Tensor, uniform: Tensor, limit: int, top_k: int) -> Tensor:
    """Token ids `[n, limit]` from `ids [n, begun]`."""
    # With the cache only the newest token is run.
    cache, news = None, ids
    for step in range(limit - ids.shape[1]):
        out = model(
            input_ids=news,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        best = out.logits[:, -1].float().topk(min(top_k, out.logits.shape[-1]))
        cumulated = best.values.softmax(-1).cumsum(-1)
        # By the inverse of the distribution, scaled by its sum, which rounding may leave below 1.
        drawn = uniform[:, step].to(cumulated.device)[:, None] * cumulated[:, -1:]
        place = (cumulated < drawn).sum(-1, keepdim=True).clamp_max(best.indices.shape[1] - 1)
        news = best.indices.gather(1, place)
        ids = torch.cat([ids, news], dim=1)
    return ids


def _text(tokenizer: Any, ids: list[int], begun: int) -> str:  # noqa: ANN401
    end = tokenizer.eos_token_id
    if end is not None and end in ids[begun:]:
        ids = ids[: begun + ids[begun:].index(end)]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def generation_entropy(text: str) -> float:
    """`(⅔ H₂ + 4⁄3 H₃) / 2` of a text's words, in bits: low where a model repeats itself.

    H₂ and H₃ are the entropies of its pairs and triples of words (Zhang et al., NeurIPS 2018, with
    the weights of Meng et al.). A text of fewer than three words has none: NaN.

    Example:
        >>> generation_entropy("a a a a a")
        0.0
        >>> round(generation_entropy("one two three four"), 4)  # (2/3 log2(3) + 4/3 log2(2)) / 2
        1.195
    """
    words = _WORD.findall(text)
    if len(words) < 3:
        return math.nan
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], size: int) -> float:
    counts = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    total = sum(counts.values())
    # With `+ 0.0`, for minus a sum of zeros is -0.0.
    return -sum(n / total * math.log2(n / total) for n in counts.values()) + 0.0
