"""What a personalisation method is, for the study: it trains, it leaves a file, it is applied."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rankedit_recipes import perfusion
from torch import Tensor

from rankedit.atomic import atomic_write


@dataclass(frozen=True)
class Subject:
    """What is to be learned.

    Attributes:
        name: a name for files.
        category: what kind of thing it is, a word that the model knows.
        photos: of it, with masks for methods that use them.
        rare: a word that the tokenizer has and captions hardly use, for methods that take one.
    """

    name: str
    category: str
    photos: tuple[perfusion.Photo, ...]
    rare: str = "toy"

    @property
    def word(self) -> str:
        """The new word, for methods that make one."""
        return f"<{self.name}>"


@dataclass(frozen=True)
class Settings:
    """How to train; what is not the method's own is the same for all of them.

    Attributes:
        rate: learning rate, in the method's own unit.
        steps: at which the training's state is kept, ascending; the last one ends it.
        batch: photos in a step.
        seed: of everything that is drawn.
        masked: whether the loss is weighted by the photos' masks, where the method's users do not.
        flip: whether photos are mirrored at random.
        priors: regularisation pictures, for methods that have them.
        decay: part of the steps, at the end, over which the rate falls to zero; as the recipe's.
    """

    rate: float
    steps: tuple[int, ...] = (200,)
    batch: int = 8
    seed: int = 0
    masked: bool = False
    flip: bool = False
    priors: int = 24
    decay: float = 0.5


@dataclass(frozen=True)
class Artefact:
    """What a training left: one file.

    Attributes:
        subject: what was learned.
        file: as the method's users would keep it, tensors in 16 bit.
        step: after so many steps.
    """

    subject: Subject
    file: Path
    step: int

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.file.stat().st_size


class Method(Protocol):
    """One way to personalise a pipeline.

    Attributes:
        name: as tables show it.
        rates: candidates of the search.
        scales: what `apply` is varied over, without training again.
        searched: those of them that the search judges; with the steps the same number for all.
        usual: the scale where none was searched for.
    """

    name: str
    rates: Sequence[float]
    scales: Sequence[float]
    searched: Sequence[float]
    usual: float

    def phrase(self, subject: Subject) -> str:
        """What stands for the concept in prompts."""

    def train(
        self, pipe: Any, subject: Subject, settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Learn a subject and write a file for each of the steps; the pipeline stays as it was."""

    def apply(self, pipe: Any, artefact: Artefact, scale: float) -> AbstractContextManager[None]:
        """Put what was learned into a pipeline; leaving the block restores it to the bit."""


@dataclass
class Cost:
    """What a block of code took.

    Attributes:
        seconds: of processor time.
        wall: seconds on the clock.
        megabytes: largest resident memory above that at the beginning; 0 where unknown.
    """

    seconds: float = 0.0
    wall: float = 0.0
    megabytes: float = 0.0


@contextlib.contextmanager
def measured() -> Iterator[Cost]:
    """Fill in a `Cost` at the end of the block."""
    cost = Cost()
    before = _reset_memory()
    clock, wall = time.process_time(), time.perf_counter()
    yield cost
    cost.seconds, cost.wall = time.process_time() - clock, time.perf_counter() - wall
    cost.megabytes = max(0.0, _memory("VmHWM") - before) if before else 0.0


def _reset_memory() -> float:
    """Return resident megabytes, and let the high-water mark start there (Linux; else 0)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0.0
    return _memory("VmRSS")


def _memory(name: str) -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1e3
    return 0.0


@dataclass
class Kept:
    """The files of one training, written as its steps come.

    Attributes:
        subject: what is learned.
        folder: where the files go.
        artefacts: those written so far.
    """

    subject: Subject
    folder: Path
    artefacts: list[Artefact] = field(default_factory=list)

    def write(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors in 16 bit as the file of a step."""
        from safetensors.torch import save

        half = {name: t.detach().cpu().half().contiguous() for name, t in tensors.items()}
        self.write_bytes(step, save(half, {"format": "pt"}))

    def write_bytes(self, step: int, data: bytes) -> None:
        """Write the file of a step."""
        file = file_of(self.folder, step)
        with atomic_write(file) as temporary:
            temporary.write_bytes(data)
        self.artefacts.append(Artefact(self.subject, file, step))


def file_of(folder: Path, step: int) -> Path:
    """Where the artefact of a step lies."""
    return folder / f"step-{step}.safetensors"


def trained(
    method: Method, pipe: Any, subject: Subject, settings: Settings, folder: Path
) -> list[Artefact]:
    """The artefacts of a training: those that are there, else made and written with their cost."""
    notes = folder / "training.json"
    if notes.exists():
        files = {step: file_of(folder, step) for step in settings.steps}
        return [Artefact(subject, file, step) for step, file in files.items() if file.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with measured() as cost:
        made = method.train(pipe, subject, settings, folder)
    told = {
        "seconds": cost.seconds, "wall": cost.wall, "megabytes": cost.megabytes,
        "rate": settings.rate, "steps": list(settings.steps), "batch": settings.batch,
        "seed": settings.seed, "masked": settings.masked, "flip": settings.flip,
    }  # fmt: skip
    with atomic_write(notes) as temporary:
        temporary.write_text(json.dumps(told))
    return made
