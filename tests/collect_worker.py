"""One process of the distributed tests; run by torchrun, or twice by hand.

Arguments: the scenario, a folder for what it writes, and, without torchrun, rank and world size.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from rankedit import RankeditError
from rankedit.collecting.checkpoint import Checkpoint
from rankedit.collecting.collect import collect

SEEDS = 7  # batches; odd, so that the shares differ


class Model(nn.Module):
    """`late` is called in some batches only, and once reads what the others do not."""

    def __init__(self):
        super().__init__()
        self.key, self.value, self.late = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x, number):
        self.key(x)
        self.value(x if number != 3 else x + 1)
        if number > 3:
            self.late(x)


def make_model():
    torch.manual_seed(0)
    return Model()


def make_batches():
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(2, 3 + n, 6, generator=generator), "number": n} for n in range(SEEDS)]


def settings(scenario, folder, rank, size):
    """The batches of this process and the arguments of `collect`."""
    batches = make_batches()
    kept = {"checkpoint": Checkpoint(folder / "partial", seconds=0.0)}
    return {
        "share": (batches, {}),
        "own": (batches[rank::size], {"shard": False}),
        "doubled": (batches, {"shard": False}),
        "lost": (batches[rank::size], {}),
        "one": (batches[:1], {}),
        "dies": (batches, kept),
        "resumes": (batches, kept),
        "sharded": (batches[:6], {}),
        "uneven": (batches, {}),
    }[scenario]


def main(scenario, folder):
    rank = distributed.get_rank()
    batches, options = settings(scenario, folder, rank, distributed.get_world_size())
    model = make_model()
    if scenario in ("sharded", "uneven"):
        fully_shard(model)
    calls = []

    def call(batch):
        calls.append(1)
        if scenario == "dies" and rank == 1 and len(calls) == 3:
            os._exit(3)
        model(**batch)

    names = ["key", "value"] if scenario in ("one", "sharded") else "*"
    moments = collect(model, names, batches, call=call, progress=False, **options)
    if scenario == "resumes":
        (folder / f"calls{rank}").write_text(str(len(calls)))
    record = {
        name: {**{k: v.tolist() for k, v in moment.state().items()}, "id": id(moment)}
        for name, moment in moments.items()
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    options = {"backend": "gloo", "timeout": timedelta(minutes=10)}
    if len(sys.argv) > 3:
        options |= {"rank": int(sys.argv[3]), "world_size": int(sys.argv[4])}
        options["init_method"] = f"file://{folder / f'{scenario}.rendezvous'}"
    distributed.init_process_group(**options)
    try:
        main(scenario, folder)
    except RankeditError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(5)
    distributed.destroy_process_group()
