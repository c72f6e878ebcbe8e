"""Textual inversion of what an edit took out: one new word, learned on the edited model.

Gal et al., arXiv 2208.01618; as an attack on erased concepts Pham et al., arXiv 2308.01508. What is
minimised over the word's embeddings alone is the model's own denoising loss on a few pictures.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save
from torch import Tensor

from rankedit.atomic import atomic_write
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.latents import encoded, pixels_of
from rankedit_recipes.diffusion.noising import noise_scheduler, target_of, told_times, train_steps
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline, word_tokens
from rankedit_recipes.diffusion.words import NewWords, embedding_layers, embedding_of

_CHECKPOINT = 25
# Rows of an embedding table that its spread is taken from.
_SOME = 1024


@dataclass(frozen=True)
class TextualInversion:
    """A learner for `probe`: a word that begins as the erased one.

    Attributes:
        rate: of Adam, in standard deviations of the encoder's token embeddings.
        batch: pictures in a step.
        word: that is learned.
        size: edge of the pictures in pixels; 0 for the model's own.
    """

    # At 0.05 the word itself decays on the sandbox: shown 62 % of the time, after 200 steps 12 %.
    rate: float = 0.02
    batch: int = 4
    word: str = "<probe>"
    size: int = 0
    name = "textual inversion"

    def __call__(
        self,
        pipe: Pipeline,
        pictures: Sequence[Image.Image],
        concept: str,
        templates: Sequence[str],
        steps: Sequence[int],
        *,
        seed: int,
        run: Path | None,
    ) -> Iterator[tuple[int, str]]:
        """Learn, and stop at each of the steps with the word in the pipeline; see `Learner`."""
        parts = Parts(pipe)
        rows = [
            embedding_of(encoder, word_tokens(tokenizer, concept)[-1]).to(parts.device)
            for _, encoder, tokenizer in parts.text.encoders
        ]
        units = [_spread(encoder) for _, encoder, _ in parts.text.encoders]
        # Pictures are drawn and not mirrored: a few of the model's own need no more of them.
        work = _Work(parts, pictures, [t.format(self.word) for t in templates], self, seed)
        state = _State(rows, [unit * self.rate for unit in units])
        done = state.restore(run)
        if not done:
            state.write(run, 0)
        with frozen(parts, checkpointing=False):
            words = NewWords(parts.text, {self.word: state.rows})
            try:
                for step in range(steps[-1] + 1):
                    if step in steps:
                        state.restore(run, at=step) if step <= done else state.write(run, step)
                        yield step, self.word
                    if done <= step < steps[-1]:
                        if step == done:
                            state.restore(run)
                        state.move(work.loss(step), step)
                        if (step + 1) % _CHECKPOINT == 0:
                            state.write(run, step + 1)
            finally:
                words.remove()


class _State:
    """Rows and Adam's moments; in a folder each state that pictures are made of, and the newest."""

    def __init__(self, rows: Sequence[Tensor], rates: Sequence[float]) -> None:
        self.rows = [row.clone().requires_grad_() for row in rows]
        groups = [{"params": [r], "lr": rate} for r, rate in zip(self.rows, rates, strict=True)]
        self._adam = torch.optim.Adam(groups)

    def move(self, loss: Tensor, step: int) -> None:
        """One step of Adam."""
        if not math.isfinite(float(loss.detach())):
            raise ConceptsError(
                f"probe: the loss of step {step} is {float(loss.detach())}; give "
                "TextualInversion(rate=...) a smaller rate, or a pipeline in float32."
            )
        loss.backward()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def write(self, run: Path | None, step: int) -> None:
        """Keep the state of a step."""
        if run is None:
            return
        tensors = {f"row.{i}": row.detach().cpu().contiguous() for i, row in enumerate(self.rows)}
        for i, row in enumerate(self.rows):
            for name, value in self._adam.state.get(row, {}).items():
                tensors[f"{name}.{i}"] = value.detach().cpu().contiguous().clone()
        with atomic_write(run / f"inversion-{step}.safetensors") as temporary:
            temporary.write_bytes(save(tensors))

    def restore(self, run: Path | None, at: int | None = None) -> int:
        """The state of a step, or the newest one; returns its step, 0 if there is none."""
        known = sorted(int(f.stem.split("-")[1]) for f in run.glob("inversion-*")) if run else []
        if run is None or not known:
            return 0
        step = known[-1] if at is None else at
        found = load_file(run / f"inversion-{step}.safetensors")
        with torch.no_grad():
            for i, row in enumerate(self.rows):
                row.copy_(found[f"row.{i}"])
                moments = ("step", "exp_avg", "exp_avg_sq")
                kept = {n: found[f"{n}.{i}"] for n in moments if f"{n}.{i}" in found}
                # Adam counts steps on the CPU, wherever the rest is.
                self._adam.state[row] = {
                    n: v.clone() if n == "step" else v.to(row) for n, v in kept.items()
                }
        return step


class _Work:
    """The loss of each step; everything that is drawn depends on the seed and the step alone."""

    def __init__(
        self,
        parts: Parts,
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        how: TextualInversion,
        seed: int,
    ) -> None:
        self._parts, self._prompts, self._batch, self._seed = parts, prompts, how.batch, seed
        self._size = parts.denoiser.picture_size(how.size)
        self._process = noise_scheduler(parts.pipe)
        self._latents = torch.cat(
            [encoded(parts, _square(p, self._size), self._size) for p in pictures]
        )

    def loss(self, step: int) -> Tensor:
        """Mean squared error of what the model predicts for one batch."""
        stream = hashlib.sha256(f"inversion {self._seed} {step}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(stream, "little"))

        def integers(high: int) -> Tensor:
            return torch.randint(high, (self._batch,), generator=generator)

        chosen, texts = integers(len(self._latents)), integers(len(self._prompts))
        latents = self._latents[chosen.to(self._latents.device)]
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        times = integers(train_steps(self._process)).to(latents.device)
        unique, back = texts.unique(return_inverse=True)
        text = self._parts.text.encode([self._prompts[i] for i in unique]).rows(back)
        noisy: Any = self._process.add_noise(latents, noise, times)
        told = told_times(self._process, times)
        predicted = self._parts.denoiser.run(noisy, told, text, size=self._size)
        wanted = target_of(self._process, latents, noise, times)
        # In float32: squares of small errors are rounded away in 16 bits.
        return (predicted.float() - wanted.float()).square().mean()


def _spread(encoder: torch.nn.Module) -> float:
    """Standard deviation of the token embeddings, over the first thousand."""
    layer: Any = embedding_layers(encoder)[0]
    device = next(encoder.parameters()).device
    with torch.no_grad():
        table = layer(torch.arange(min(_SOME, int(layer.num_embeddings)), device=device))
    return float(table.float().std())


def _square(picture: Image.Image, size: int) -> Tensor:
    """A picture's middle square, `[1, 3, size, size]`."""
    fitted = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return pixels_of(fitted)[None]
