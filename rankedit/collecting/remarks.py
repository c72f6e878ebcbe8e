"""What `collect` says of the data: never a wrong statistic without a word."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from rankedit.collecting.sharing import Group
from rankedit.errors import RankeditWarning, StatisticsError
from rankedit.models.reaching import not_called

REMEDY = "let call(batch) run them, or select what is called"

# Share of the energy from which on extreme vectors are worth a word: the trace, and whatever is in
# units of it, would be a quarter larger with them. Most texts have a few below that.
_MUCH = 0.2


def check_called(missing: list[str], of: int) -> None:
    """Say which projections the first batch did not call.

    Raises:
        StatisticsError: none was called.
    """
    if not missing:
        return
    message = not_called("collect", missing, "in the first batch", REMEDY)
    if len(missing) == of:
        raise StatisticsError(message)
    warnings.warn(f"{message} Later batches may call them.", RankeditWarning, stacklevel=5)


def warn_of_unrouted(names: Sequence[str]) -> None:
    """Say which projections have no statistics, since no token counted there."""
    if names:
        warnings.warn(
            f"collect: no token was counted in {len(names)} projections, the first {names[0]!r} "
            "(experts that none was routed to, or a mask that keeps nothing): their moments are "
            "empty, and no metric can be made of them; use more text, or other text.",
            RankeditWarning,
            stacklevel=4,
        )


def warn_of_repeats(repeats: Sequence[tuple[str, int, int]], batch: int) -> None:
    """Say that many vectors are one and the same."""
    name, total, same = max(repeats, key=lambda found: found[2] / found[1])
    warnings.warn(
        f"collect: {same} of {total} vectors ({same / total:.0%}) that {name!r} read in batch "
        f"{batch} (from 0) are one and the same, as are those of "
        f"{len(repeats) - 1} other inputs: padding that no mask leaves out? Then "
        "pass mask=, a key of the batch or a function of it.",
        RankeditWarning,
        stacklevel=5,
    )


def warn_of_extremes(groups: Iterable[Group]) -> None:
    """Say that few vectors have much of the energy, and what becomes of them."""
    shares = {group.members[0]: (group.moment.extreme_share, group) for group in groups}
    much = {name: found for name, found in shares.items() if found[0] >= _MUCH}
    if not much:
        return
    name, (share, group) = max(much.items(), key=lambda found: found[1][0])
    others = [f"{other!r} ({much[other][0]:.1%})" for other in much if other != name]
    more = f"; so it is with {', '.join(others[:4])}" if others else ""
    more += f" and {len(others) - 4} other inputs" if len(others) > 4 else ""
    warnings.warn(
        f"collect: {group.moment.extremes.count:,.0f} of {group.moment.seen:,.0f} vectors that "
        f"{name!r} read are more than five times as long as three quarters of all, as attention "
        f"sinks are, and have {share:.1%} of the energy{more}. They are kept apart from the "
        "statistics, and edits protect them; extremes='together' counts them like the others.",
        RankeditWarning,
        stacklevel=4,
    )
