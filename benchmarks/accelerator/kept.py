"""Where this runs, what was measured so far, and the page that tells it."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rankedit.atomic import atomic_write

Row = dict[str, object]
FAILED = "FAILED"  # in a row: what is to be done again
UNTIMED = ("error", "result", FAILED)
UNRUN = "This was **not run on a card yet**: what follows is its trial in small, on a processor."


@dataclass(frozen=True)
class Place:
    """A device, and whether all sizes are small.

    Attributes:
        device: where ours and its peer run; each result is compared with the processor's.
        small: sizes that a processor does in minutes.
    """

    device: torch.device
    small: bool

    @property
    def name(self) -> str:
        """Of the card."""
        return torch.cuda.get_device_name(self.device) if self.cuda else "a processor"

    @property
    def cuda(self) -> bool:
        """Whether it is one."""
        return self.device.type == "cuda"

    def settle(self) -> None:
        """Wait for what was asked of the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Time of one call, with all that it asked of the device."""
        self.settle()
        start = time.perf_counter()
        call()
        self.settle()
        return time.perf_counter() - start

    def against(
        self, ours: Callable[[], object], peer: Callable[[], object], pairs: int = 21
    ) -> Row:
        """The median ratio of our time to the peer's, in turns: both meet the same machine."""
        for call in (ours, peer) * 2:
            self.seconds(call)
        ratios, times = [], []
        for index in range(5 if self.small else pairs):
            order = (ours, peer) if index % 2 else (peer, ours)
            took = {call: self.seconds(call) for call in order}
            ratios.append(took[ours] / took[peer])
            times.append(took[ours])
        low, middle, high = statistics.quantiles(ratios, n=4)
        return {
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "milliseconds": round(1e3 * statistics.median(times), 3),
        }

    def peak(self, call: Callable[[], object]) -> int | None:
        """Bytes of the device that a call took at most beyond none; None on a processor."""
        if not self.cuda:
            call()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self.seconds(call)
        return torch.cuda.max_memory_allocated(self.device)


@dataclass
class Kept:
    """Results on disk: a part that was stopped goes on with what is missing.

    Attributes:
        file: where they lie.
        place: where this runs; results of another card, torch or size are not kept.
        rows: by `part: unit`.
    """

    file: Path
    place: Place
    rows: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.exists():
            found = json.loads(self.file.read_text())
            if {name: found.get(name) for name in self.head} == self.head:
                self.rows = found["rows"]

    @property
    def head(self) -> Row:
        """What results must share."""
        place = self.place
        return {"device": place.name, "small": place.small, "torch": torch.__version__}

    def run(self, part: str, units: dict[str, Callable[[], Row]], seconds: float) -> bool:
        """Measure what is not there yet, as far as the time goes.

        Returns:
            Whether all of the part is there.
        """
        start = time.monotonic()
        for name, unit in units.items():
            key = f"{part}: {name}"
            if FAILED not in self.rows.get(key, {FAILED: ""}):
                continue
            if time.monotonic() - start > seconds:
                print(f"{part}: its {seconds:.0f} s are over; the same command goes on", flush=True)
                return False
            begun = time.monotonic()
            # A result that is wrong stops everything: its time would mean nothing.
            self.rows[key] = unit()
            print(f"{key}: {self.rows[key]} ({time.monotonic() - begun:.1f} s)", flush=True)
            self.write()
        return not any(FAILED in self.rows[f"{part}: {name}"] for name in units)

    def write(self) -> None:
        """The results, and the page beside them."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n"
        for file, content in ((self.file, text), (self.file.with_suffix(".md"), self.page())):
            with atomic_write(file) as part:
                part.write_text(content)

    def page(self) -> str:
        """A table, under the card's name."""
        lines = ["# On an accelerator", ""]
        lines += [] if self.place.cuda else [UNRUN, ""]
        lines += [
            f"Measured on {self.place.name}, torch {torch.__version__}"
            + (", in small." if self.place.small else "."),
            "Every result was compared with the processor's in float64 or float32 before anything",
            "was timed; ratios are medians of pairs in turns, with quartiles.",
            "`python benchmarks/accelerator.py all` measures them.",
            "",
            "| what | figures |",
            "|---|---|",
        ]
        for key, row in self.rows.items():
            # In small on a processor, which others use too, times tell nothing.
            shown = row if self.place.cuda else {n: row[n] for n in row if n in UNTIMED}
            lines.append(f"| {key} | {', '.join(f'{n} {v}' for n, v in shown.items())} |")
        return "\n".join(lines) + "\n"


def check_close(what: str, found: torch.Tensor, right: torch.Tensor, relative: float) -> float:
    """The relative error in the Frobenius norm, if it is not too large."""
    found, right = found.detach().cpu().double(), right.detach().cpu().double()
    error = float((found - right).norm() / right.norm().clamp_min(1e-300))
    if not error <= relative:
        raise SystemExit(
            f"accelerator: {what} differs from the processor's by {error:.2g}; stopped"
        )
    return error
