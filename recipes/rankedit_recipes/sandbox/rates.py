"""The learning rates of the sandbox's trainings."""


def part_of_peak(step: int, steps: int, *, rise: int, decay: float) -> float:
    """Learning rate of a step, as a part of the peak: a short rise, level, a fall to zero.

    Args:
        step: Number of the step.
        steps: Steps until the rate is zero.
        rise: Steps of the rise; of a short training a tenth.
        decay: Part of the steps, at the end, over which it falls.

    Returns:
        Between 0 and 1.

    Example:
        >>> part_of_peak(750, 1000, rise=50, decay=0.5)
        0.5
    """
    # Not step / rise: the first step would change nothing.
    up = (step + 1) / min(rise, max(1, steps // 10))
    # Level and then straight down, no cosine: as long as it is level the rate does not depend on
    # the end, which can then be set later (docs/decisions/skins-told-in-full.md).
    down = (steps - step) / max(1.0, decay * steps)
    return max(0.0, min(1.0, up, down))
