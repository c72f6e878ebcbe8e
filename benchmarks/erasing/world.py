"""The sandbox's model, its judge, and what it makes unedited."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rankedit_recipes import sandbox
from rankedit_recipes.concepts.commands.opening import sandbox_captions
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.diffusion.statistics import second_moment
from rankedit_recipes.sandbox.images.judge import AttributeJudge, Verdict, judge

import rankedit as rk
from benchmarks.erasing.asking import Asked, pool
from rankedit.atomic import atomic_write

# Ten steps show what is in a picture as twenty do (12 of 12 obeyed with either), in half the time.
SAMPLING = Sampling(steps=10, guidance=4.0, batch=12)
POOL = 30
_ANOTHER = 1000


class World:
    """The model, its judge, and its statistics when they are first asked for.

    Args:
        kept: folder for what is computed once.
    """

    def __init__(self, kept: Path) -> None:
        self.pipe = sandbox.pipeline()
        self.pipe.set_progress_bar_config(disable=True)
        self.judge: AttributeJudge = sandbox.attribute_judge()
        self.captions = sandbox_captions()
        self._kept = kept
        self._moment: rk.SecondMoment | None = None
        self._pool: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def moment(self) -> rk.SecondMoment:
        """Of the captions."""
        if self._moment is None:
            self._moment = second_moment(self.pipe, self.captions, progress=False)
        return self._moment

    def pictures(self, asked: Sequence[Asked | str], seed: int = 0) -> np.ndarray:
        """`[n, size, size, 3]`; each prompt's noise depends on the seed and its place only."""
        prompts = [one if isinstance(one, str) else one.prompt for one in asked]
        made = generate(self.pipe, prompts, range(seed, seed + len(prompts)), SAMPLING)
        return np.stack([np.asarray(image.convert("RGB")) for image in made])

    def seen(self, pictures: np.ndarray) -> Verdict:
        """What the judge says of pictures."""
        return judge(self.judge, torch.from_numpy(pictures.copy()))

    def pool(self) -> tuple[list[Asked], np.ndarray, np.ndarray]:
        """The pool, its pictures without an edit, and of another noise."""
        file, asked = self._kept / "pool.npz", pool(POOL)
        if self._pool is None and file.exists():
            with np.load(file) as found:
                self._pool = found["one"], found["other"]
        if self._pool is None:
            self._pool = self.pictures(asked), self.pictures(asked, _ANOTHER)
            with atomic_write(file) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(stream, one=self._pool[0], other=self._pool[1])
        return asked, *self._pool

    def same_noise(self, places: Sequence[int]) -> np.ndarray:
        """Pictures of some places of the pool, of the noise that they have there."""
        asked = pool(POOL)
        made = generate(self.pipe, [asked[i].prompt for i in places], list(places), SAMPLING)
        return np.stack([np.asarray(image.convert("RGB")) for image in made])


def strip(rows: Sequence[np.ndarray]) -> Image.Image:
    """Rows of pictures under each other."""
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows]))
