"""How far a model has moved on texts that no edit is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.likelihoods import evaluating, run
from rankedit_recipes.language.model.running import embedding_device

TOKENS = 4096
# So that many texts fit: predictions are as large as the vocabulary for each token.
_LONGEST = 256


class Unrelated:
    """What a model predicts on unrelated text, kept to compare a later model with it.

    Args:
        model: a causal model of transformers, before it is edited.
        tokenizer: its tokenizer.
        texts: unrelated to the edits; taken in turn until `tokens` are reached.
        tokens: how many predictions to keep. Each is as large as the vocabulary.

    Raises:
        LanguageError: no text with at least two tokens.

    Attributes:
        count: predictions that are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,  # noqa: ANN401 - a tokenizer of transformers
        texts: Sequence[str],
        *,
        tokens: int = TOKENS,
    ) -> None:
        self._ids: list[list[int]] = []
        self.count = 0
        longest = getattr(model.config, "max_position_embeddings", None) or _LONGEST
        for text in texts:
            ids = tokenizer(text)["input_ids"][: min(longest, _LONGEST)]
            if len(ids) > 1 and self.count < tokens:
                self._ids.append(ids)
                self.count += len(ids)
        if not self._ids:
            raise LanguageError(
                "Unrelated: at least one text of two tokens is expected, got "
                f"{len(texts)} texts with none."
            )
        self._before = self._predict(model)

    def divergences(self, model: nn.Module) -> Tensor:
        """`[texts]`: `KL(before ‖ now)` of the next token, in nats, mean over a text's tokens."""
        now = self._predict(model)
        return torch.stack(
            [
                _divergence(before, after).mean()
                for before, after in zip(self._before, now, strict=True)
            ]
        ).double()

    def _predict(self, model: nn.Module) -> list[Tensor]:
        """Log-probabilities `[length, vocabulary]` of each text."""
        found: list[Tensor] = [torch.empty(0)] * len(self._ids)
        # By length, without padding, as likelihoods are: no text's numbers depend on another one's.
        lengths = sorted({len(ids) for ids in self._ids})
        with torch.inference_mode(), evaluating(model):
            for length in lengths:
                group = [i for i, ids in enumerate(self._ids) if len(ids) == length]
                inputs = torch.tensor([self._ids[i] for i in group], device=embedding_device(model))
                # In float32 and on the CPU: a divergence of thousandths is lost in half precision.
                log = run(model, inputs).logits.float().log_softmax(-1)
                for index, row in zip(group, log.cpu(), strict=True):
                    found[index] = row
        return found


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    """`KL(before ‖ after)` of log-probabilities, over the last dimension."""
    terms = before.exp() * (before - after)
    # What had no chance before contributes nothing; rounding must not make the sum negative.
    return torch.where(before.isneginf(), 0, terms).sum(-1).clamp_min(0)
