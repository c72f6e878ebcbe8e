"""Scenarios in two processes of torch.distributed, run in both; what each raised is kept."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Scenarios = Mapping[str, Callable[[int], None]]


def tracebacks(scenarios: Scenarios) -> dict[str, list[str | None]]:
    """By scenario what each process raised, None for nothing; spawning is most of the time.

    Args:
        scenarios: functions of the rank that can be pickled.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue: Any = context.Queue()
    found: dict[str, list[str | None]] = {name: [] for name in scenarios}
    processes = [
        context.Process(target=_work, args=(rank, port, queue, dict(scenarios)), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        for _ in range(2 * len(scenarios)):
            name, failure = queue.get(timeout=400)
            found[name].append(failure)
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()
    return found


def _work(rank: int, port: int, queue: Any, scenarios: Scenarios) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=300))
    for name, scenario in scenarios.items():
        failure = None
        try:
            scenario(rank)
        except BaseException:  # the parent shows it
            failure = traceback.format_exc()
        queue.put((name, failure))
    dist.destroy_process_group()
