"""Settings with a number for each row of a batch, and the batches that a pipeline's calls make.

A call with n prompts and m pictures of each is a batch of n·m rows, prompt by prompt; guidance
repeats it whole. What stands in the layers is that batch's: one number for each of n·m rows.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rankedit_recipes.diffusion.text import Texts, encoding_for_recipe
from rankedit_recipes.perfusion.errors import PerfusionError

Number = float | tuple[float, ...]
"""A setting: one number, or one for each row of a batch."""
Given = float | Sequence[float] | Tensor
"""The same as users write it."""


def number_of(given: Given) -> Number:
    """What was given, as settings are kept.

    Raises:
        PerfusionError: neither a number nor a list of numbers.
    """
    value: Any = given.tolist() if hasattr(given, "tolist") else given
    rows = isinstance(value, Sequence) and len(value) > 0
    numbers = value if rows else (value,)
    # A text is a sequence too, and its letters may be digits.
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise PerfusionError(
            f"perfusion: a setting must be a number, or a list with one for each row of a batch, "
            f"got {given!r}."
        )
    return tuple(float(number) for number in value) if rows else float(value)


def first_of(number: Number) -> float:
    """The number itself, or the first row's."""
    return number[0] if isinstance(number, tuple) else number


def row_count(numbers: Iterable[Number]) -> int:
    """For how many rows the numbers are; 0 if none of them is by row.

    Raises:
        PerfusionError: some are for other batches than others.
    """
    counts = sorted({len(number) for number in numbers if isinstance(number, tuple)})
    if len(counts) > 1:
        raise PerfusionError(
            "perfusion: settings by row must be for one batch, got some for "
            f"{' and some for '.join(map(str, counts))} rows; set those of the other concepts to "
            "one number first, or all of them in one call."
        )
    return counts[0] if counts else 0


def column(numbers: Sequence[Number], pictures: int = 1) -> Tensor:
    """`[n]`, or `[rows · pictures, n]` if some are by row, the pictures of a row side by side."""
    rows = row_count(numbers)
    if not rows:
        # Not [1] for a single key: after rows the library would take that for one row.
        return torch.tensor(numbers if len(numbers) > 1 else numbers[0])
    written = [number if isinstance(number, tuple) else (number,) * rows for number in numbers]
    return torch.tensor(written).T.repeat_interleave(pictures, 0)


class Batches:
    """Listens to a pipeline's `encode_prompt`, which every call begins with, until it is removed.

    Args:
        texts: of the pipeline.
        rows: for how many rows settings were given.
        publish: called when `pictures` has changed.
    """

    def __init__(self, texts: Texts, rows: int, publish: Callable[[], None]) -> None:
        self.rows = rows
        pipe, self._publish = texts.pipe, publish
        self._pipe = pipe
        self._seen, self._called_here = (0, 0), False
        # Another pipeline may have the same parts, and its prompts are not those of the settings.
        encoders = [encoder.model for encoder in texts.encoders]

        # A function: copies of a pipeline have it as it is, and other encoders.
        def heard(encoder: object, _: object) -> None:
            if any(encoder is own for own in encoders):
                self._encoded()

        self._hooks = [encoder.register_forward_pre_hook(heard) for encoder in encoders]
        self._own = "encode_prompt" in vars(pipe)
        self._encode = pipe.encode_prompt
        self._signature = inspect.signature(self._encode)
        functools.update_wrapper(self, self._encode)
        pipe.encode_prompt = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as encode_prompt
        """`encode_prompt`, and a look at what it was called with."""
        self._called_here = True
        try:
            result = self._encode(*args, **kwargs)
        finally:
            self._called_here = False
        # Recipes read prompts of their own beside the calls that settings are for.
        if not encoding_for_recipe():
            self._called(self._signature.bind(*args, **kwargs).arguments, len(result[0]))
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # noqa: ANN401 - a method
        # A copied pipeline has edits of its own, which are not for this one to change.
        return copy.deepcopy(self._encode, memo)

    @property
    def pictures(self) -> int:
        """How often each row stands in the batch of the newest call; 0 where that is not known."""
        # Not 1 before a call: where each prompt has two pictures, their batch looks like that of
        # one picture and guidance.
        return self._seen[1] // self.rows if self.rows in self._seen else 0

    def _encoded(self) -> None:
        """A text encoder runs: for somebody else, after whom nothing is known of the next batch."""
        if not self._called_here and not encoding_for_recipe() and self._seen != (0, 0):
            self._seen = (0, 0)
            self._publish()

    def remove(self) -> None:
        """Restore the pipeline."""
        for hook in self._hooks:
            hook.remove()
        if vars(self._pipe).get("encode_prompt") is not self:
            return  # another one was put there meanwhile
        if self._own:
            self._pipe.encode_prompt = self._encode
        else:
            self._pipe.__dict__.pop("encode_prompt", None)

    def _called(self, given: dict[str, Any], count: int) -> None:
        """A call of the pipeline: how many prompts it was given, and rows that they became."""
        prompt: Any = given.get("prompt")
        given_rows = given["prompt_embeds"] if prompt is None else prompt
        prompts = 1 if isinstance(prompt, str) else len(given_rows)
        if self.rows not in (prompts, count):
            each = f", {count} pictures" if count != prompts else ""
            raise PerfusionError(
                f"perfusion: settings were given for {self.rows} rows of a batch, but this call "
                f"has {prompts} prompt{'s' if prompts > 1 else ''}{each}; give a number for each "
                "prompt or for each picture, or one for all: perfusion.set_concepts(pipe, "
                "strength=1.0)."
            )
        before, self._seen = self.pictures, (prompts, count)
        if self.pictures != before:
            self._publish()
