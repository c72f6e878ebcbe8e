"""Averaged weights, put into modules."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def load_average(average: Mapping[str, Tensor], modules: Sequence[tuple[str, nn.Module]]) -> None:
    """Copy averaged weights into modules and make these ready for use.

    Args:
        average: Averages by the names that parameters have in the training.
        modules: Names in the training, and what to fill.
    """
    for name, module in modules:
        prefix = f"{name}."
        weights = {
            key.removeprefix(prefix): value
            for key, value in average.items()
            if key.startswith(prefix)
        }
        # Averages are of parameters; buffers are as they were built, and nothing else may be.
        wanted = {own for own, _ in module.named_parameters()}
        if wanted != set(weights):
            raise ValueError(
                f"load_average: expected averages of the {len(wanted)} parameters of {name!r}, got "
                f"{len(weights)}; these are on one side only: {sorted(wanted ^ set(weights))[:3]}"
            )
        module.load_state_dict(weights, strict=False)
        module.eval().requires_grad_(requires_grad=False)
