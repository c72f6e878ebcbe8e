"""What a module reads in a forward that ends there."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from rankedit_recipes.diffusion.errors import PipelineError


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward that has done its work
    """Raised to end a forward once what is wanted of it is known."""


def ended_when(run: Callable[[], object], module: nn.Module) -> Tensor:
    """What a module reads in a forward, which ends there.

    Raises:
        PipelineError: the forward never comes to the module.
    """
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Reached

    # Before a global lock's hook, which exchanges what key projections read.
    handle = module.register_forward_pre_hook(stop, prepend=True)
    # What comes behind the module would be computed for nothing.
    try:
        run()
    except _Reached:
        return seen[0]
    finally:
        handle.remove()
    raise PipelineError(
        f"diffusion: the denoiser does not call {type(module).__name__} as it was expected to; it "
        "may have been fused or replaced after the targets were found."
    )
