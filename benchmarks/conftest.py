"""The one way in which benchmarks compare: interleaved pairs, after the results were checked."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.fixture
def versus(benchmark: Any) -> Callable[..., float]:
    """Time `ours` against `peer` in alternation, so that a drifting machine slows both alike.

    Records the median of the pairwise ratios ours/peer with its quartiles, the target if there is
    one, and the names, for the table; `benchmark` itself records the absolute time of `ours`.
    """

    def compare(
        ours: Callable[[], object],
        peer: Callable[[], object],
        *,
        what: str,
        peer_name: str,
        pairs: int = 15,
        target: float | None = None,
        note: str = "",
    ) -> float:
        with torch.no_grad():
            _seconds(ours), _seconds(peer)
            ratios = []
            for index in range(pairs):
                sides = (ours, peer) if index % 2 == 0 else (peer, ours)
                times = {side: _seconds(side) for side in sides}
                ratios.append(times[ours] / times[peer])
            low, median, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
            benchmark.extra_info.update(
                what=what,
                peer=peer_name,
                ratio=median,
                quartiles=[low, high],
                target=target,
                note=note,
            )
            benchmark.pedantic(ours, rounds=min(pairs, 5), iterations=1)
        return median

    return compare
