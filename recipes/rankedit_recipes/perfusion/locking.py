"""The global key lock: keys of the whole prompt follow the prompt with the category's word.

Prompts are encoded a second time with the category in place of the concept, and the key projections
are given that encoding, token by token, where they would read the concept's.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankedit_recipes.perfusion.denoising import denoiser_of
from rankedit_recipes.perfusion.targets import find_targets, reads
from rankedit_recipes.perfusion.text import (
    Encoded,
    Pipeline,
    encoded_of,
    positions,
    text_encoders,
    word_tokens,
)

_REMEMBERED = 64
# Encodings of one prompt in batches of different sizes differ by rounding; those of two prompts by
# far more.
_SAME = 1e-2


class GlobalLock:
    """Puts the category's encodings before the key projections until it is removed.

    Args:
        pipe: the pipeline, with the concepts' words in it.
        categories: by trigger word the category.
    """

    def __init__(self, pipe: Pipeline, categories: Mapping[str, str]) -> None:
        self._pipe, self._categories = pipe, dict(categories)
        self._pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=_REMEMBERED)
        self._last: tuple[Tensor, Tensor] | None = None
        self._encode = pipe.encode_prompt
        self._signature = inspect.signature(self._encode)
        pipe.encode_prompt = self._encode_both
        targets = find_targets(pipe)
        modules = targets.modules(denoiser_of(pipe))
        self._handles = [
            modules[name].register_forward_pre_hook(self._exchange) for name in targets.keys
        ]

    def remove(self) -> None:
        """Restore the pipeline."""
        for handle in self._handles:
            handle.remove()
        self._pipe.__dict__.pop("encode_prompt", None)
        self._pairs.clear()

    def key_reads(self, read: Tensor) -> Tensor:
        """What key projections read in place of encodings `[batch, tokens, in]`."""
        return self._locked(read)

    def _encode_both(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as encode_prompt
        result = self._encode(*args, **kwargs)
        given = self._signature.bind(*args, **kwargs).arguments
        prompts = _listed(given.get("prompt"))
        if any(trigger in prompt for prompt in prompts for trigger in self._categories):
            changed = dict(given)
            extra = changed.pop("kwargs", {})
            for name in ("prompt", "prompt_2", "prompt_3"):
                if given.get(name) is not None:
                    changed[name] = [self._in_category(p) for p in _listed(given[name])]
            other = self._encode(**changed, **extra)
            self._remember(prompts, encoded_of(result), encoded_of(other))
        return result

    def _in_category(self, prompt: str) -> str:
        for trigger, category in self._categories.items():
            prompt = prompt.replace(trigger, category)
        return prompt

    def _remember(self, prompts: Sequence[str], own: Encoded, other: Encoded) -> None:
        with torch.no_grad():
            read, wanted = reads(self._pipe, own), reads(self._pipe, other)
        copies = len(read) // len(prompts)
        for index, prompt in enumerate(prompts):
            row = index * copies
            aligned = wanted[row, self._sources(prompt, read.shape[1])]
            self._pairs.append((read[row].detach(), aligned.detach()))
        self._last = None

    def _sources(self, prompt: str, length: int) -> Tensor:
        """For each token of the prompt the one of the category's prompt that it corresponds to.

        A category of several tokens moves what follows it; its last token stands for the concept.
        """
        shift = torch.zeros(length, dtype=torch.long)
        tokenizer = text_encoders(self._pipe)[0][2]
        for trigger, category in self._categories.items():
            more = len(word_tokens(tokenizer, category)) - 1
            for place in positions(self._pipe, [prompt], trigger, length)[0]:
                shift[place:] += more
        return (torch.arange(length) + shift).clamp_max(length - 1)

    def _exchange(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read = args[0]
        if self._last is None or self._last[0] is not read:
            self._last = (read, self._locked(read))
        return (self._last[1], *args[1:])

    def _locked(self, read: Tensor) -> Tensor:
        rows = read.reshape(-1, *read.shape[-2:]) if read.ndim > 2 else read[None]
        changed = [self._row(row) for row in rows]
        return torch.stack(changed).reshape(read.shape)

    def _row(self, row: Tensor) -> Tensor:
        """One prompt's encoding; longer ones are several encodings, one behind the other."""
        for length in {len(own) for own, _ in self._pairs}:
            if len(row) > length and len(row) % length == 0:
                return torch.cat([self._part(part) for part in row.split(length)])
        return self._part(row)

    def _part(self, row: Tensor) -> Tensor:
        for own, wanted in self._pairs:
            if own.shape == row.shape:
                distance = (row.float() - own.to(row.device).float()).norm()
                if float(distance) <= _SAME * float(row.float().norm()):
                    return wanted.to(row)
        return row


def _listed(prompts: str | Sequence[str] | None) -> list[str]:
    if prompts is None:
        return []
    return [prompts] if isinstance(prompts, str) else list(prompts)
