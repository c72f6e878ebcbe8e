"""What a model says of its own accord: does it begin with the answer?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rankedit_recipes.language.evaluating.generating import generate

# Behind the target: room for "the" in front of it, and to see that its last word ends there.
_MORE = 2


def begins_with(text: str, target: str) -> bool:
    """Whether a text begins with the target as whole words, after "the" or not, in any case.

    Example:
        >>> begins_with(" Rome, the city", "Rome"), begins_with(" Romeo", "Rome")
        (True, False)
    """
    said, wanted = text.strip().lower(), target.strip().lower()
    for begun in (wanted, f"the {wanted}"):
        if said.startswith(begun) and not said[len(begun) : len(begun) + 1].isalnum():
            return True
    return False


def answered(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401 - a tokenizer of transformers
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    chat: bool | Sequence[bool] = False,
) -> list[bool]:
    """Whether what the model writes behind each prompt begins with its target.

    The likeliest token is always taken; nothing of the target is shown to the model.

    Args:
        model: a causal model of transformers.
        tokenizer: its tokenizer.
        prompts: texts to go on with.
        targets: one for each.
        chat: as in `generate`.
    """
    longest = max((len(_ids(tokenizer, f" {target}")) for target in targets), default=0)
    # Prompts once each: neighbours of many cases are the same.
    chats = [chat] * len(prompts) if isinstance(chat, bool) else list(chat)
    asked = list(dict.fromkeys(zip(prompts, chats, strict=True)))
    written = generate(
        model, tokenizer, [text for text, _ in asked],
        more=longest + _MORE, top_k=1, chat=[said for _, said in asked], whole=False,
    )  # fmt: skip
    answers = dict(zip(asked, written, strict=True))
    keys = zip(prompts, chats, strict=True)
    return [begins_with(answers[key], target) for key, target in zip(keys, targets, strict=True)]


def _ids(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
