"""Leave out the blocks below the one that is being searched: nothing in them ever changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rankedit_recipes.language.model.running import first_tensor, hooked

# Skipping must not change the logits by more than rounding.
_SAME = 1e-4


class LowerBlocks:
    """What the blocks below gave, to be given again without running them.

    Args:
        blocks: those that nothing changes in, from the first one on.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = list(blocks)
        # As the block gave it: a tensor, or a tuple with more than the stream in it.
        self._output: object = None
        # The rows that run now, of those that were recorded.
        self.rows: Tensor | None = None

    @property
    def possible(self) -> bool:
        """Whether there are blocks to skip, and their forward is the class's own.

        Offloading and compilation put a function of their own in its place.
        """
        return bool(self._blocks) and not any(
            "forward" in vars(block) or getattr(block, "_compiled_call_impl", None) is not None
            for block in self._blocks
        )

    def record(self, run: Callable[[], Tensor]) -> bool:
        """Run the model, note what the last of the blocks gives, and try whether that suffices.

        Models whose blocks hand on more than the residual stream cannot be run without some.

        Returns:
            Whether the blocks can be skipped.
        """
        if not self.possible:
            return False

        def note(_block: nn.Module, _args: object, output: object) -> None:
            self._output = output

        with torch.no_grad(), hooked((self._blocks[-1], note)):
            whole = run()
        try:
            with torch.no_grad(), self.skipped():
                short = run()
        # A later block that misses something may fail in any way: then nothing is skipped.
        except Exception:
            return False
        return same(short, whole)

    @contextlib.contextmanager
    def skipped(self) -> Iterator[None]:
        """The blocks give what was recorded, for the rows that run now."""
        given = self._output

        def passing(*args: object, **kwargs: object) -> object:
            # The embeddings go through, and unread: the last block gives what is kept.
            stream = first_tensor((args, kwargs))
            return (stream,) if isinstance(given, tuple) else stream

        def recorded(*_args: object, **_kwargs: object) -> object:
            return _chosen(given, self.rows)

        try:
            for block in self._blocks[:-1]:
                # In the instance's dictionary, which comes before the class: hooks still run.
                block.forward = passing
            self._blocks[-1].forward = recorded
            yield
        finally:
            for block in self._blocks:
                # Taken out, not set back: then the class's own shows again.
                vars(block).pop("forward", None)


def _chosen(output: Any, rows: Tensor | None) -> object:  # noqa: ANN401 - as blocks give it
    if isinstance(output, tuple):
        return (_chosen(output[0], rows), *output[1:])
    return output if rows is None else output[rows.to(output.device)]


def same(short: Tensor, whole: Tensor, tolerance: float = _SAME) -> bool:
    """Whether logits differ by no more than rounding."""
    largest = float(whole.abs().max())
    return bool(torch.allclose(whole, short, rtol=tolerance, atol=tolerance * largest))
