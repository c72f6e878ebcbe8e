"""Learn what a concept adds to values and keys of joint attention, with the stream locked.

The denoiser is given the prompt in the category's words, always. What is learned is added to values
and keys at the category's rows, and follows the noise: docs/decisions/locked-streams.md.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

import rankedit as rk
from rankedit.interrupt import Interrupt
from rankedit.progress import progress as show_progress
from rankedit_recipes.diffusion.encoded import Encoded
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.noising import noise_scheduler, target_of, told_times, train_steps
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.standing import standing
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.diffusion.words import check_known, check_trigger
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.joint.applying import check_bare
from rankedit_recipes.perfusion.joint.concept import JointConcept
from rankedit_recipes.perfusion.joint.config import JointConfig
from rankedit_recipes.perfusion.joint.places import (
    base_of,
    joint_readers,
    placed_edits,
    rows_told,
    width_of,
)
from rankedit_recipes.perfusion.learning.checkpoints import CheckpointFile, Progress
from rankedit_recipes.perfusion.learning.data import cached_latents, draw
from rankedit_recipes.perfusion.learning.loss import masked_loss
from rankedit_recipes.perfusion.learning.photos import Photo, Source, load_photos
from rankedit_recipes.perfusion.learning.planning import check_denoiser
from rankedit_recipes.perfusion.prompts import filled

CHECKPOINT = "checkpoint.safetensors"
CONCEPT = "concept.safetensors"


def learn_joint(
    pipe: Pipeline,
    photos: Source,
    *,
    placeholder: str,
    category: str,
    config: JointConfig | None = None,
    run: str | PathLike[str] | None = None,
    progress: bool = True,
) -> JointConcept:
    """Teach a pipeline with joint attention, such as SD3 or Flux, a new thing from photos of it.

    Args:
        pipe: the pipeline; it is left as it was.
        photos: a folder, a file, or pictures; see `load_photos`.
        placeholder: the word for it in prompts, such as `"<bean>"`.
        category: what kind of thing it is, a word of one token that the model knows.
        config: how to learn.
        run: folder for checkpoints and the concept; the same call goes on where it stopped, with
            the same result to the bit.
        progress: show it.

    Raises:
        PerfusionError: something about the photos, words or the model; says what to do.
        KeyboardInterrupt: Ctrl-C; with a run folder the newest state is written first.
    """
    check_bare(pipe, "learn_joint")
    parts = Parts(pipe)
    joint_readers(parts)  # refused now: before words and photos
    check_trigger(parts.text, placeholder)
    check_known(parts.text, category)
    loaded = load_photos(photos)
    config = config or JointConfig()
    with frozen(parts, checkpointing=config.checkpointing):
        training = _Training(parts, loaded, placeholder, category, config)
        if run is not None:
            Path(run).mkdir(parents=True, exist_ok=True)
            training.keep_in(Path(run))
        training.work(shown=progress)
    concept = training.concept()
    if run is not None:
        concept.save(Path(run) / CONCEPT)
    return concept


class _Training:
    """One call of `learn_joint`."""

    def __init__(
        self, parts: Parts, photos: list[Photo], word: str, category: str, config: JointConfig
    ) -> None:
        self._parts, self._config = parts, config
        self._word, self._category, self._photos = word, category, len(photos)
        self._scheduler = noise_scheduler(parts.pipe)
        check_denoiser(parts)
        readers = joint_readers(parts)
        self._base = base_of(parts, readers)
        self._data = cached_latents(parts, photos, parts.denoiser.picture_size(config.size))
        self._text, self._rows = self._read(filled(config.templates, category))
        kinds = {"values": [r.value for r in readers], "keys": [r.key for r in readers]}
        if not config.keys:
            kinds["keys"] = []
        self._names = kinds
        self._targets = {
            name: torch.zeros(
                1, config.knots, width_of(parts, name), device=parts.device, requires_grad=True
            )
            for names in kinds.values()
            for name in names
        }
        sizes = self._sizes()
        self._rates = [config.rate * max(sizes[name], 1e-8) for name in self._targets]
        pairs = zip(self._targets.values(), self._rates, strict=True)
        self._optimiser = torch.optim.Adam([{"params": [t], "lr": rate} for t, rate in pairs])
        self._progress, self._file = Progress(), None

    _file: CheckpointFile | None

    def _read(self, prompts: list[str]) -> tuple[Encoded, Tensor]:
        """The prompts as the denoiser is given them, and where the category stands."""
        texts = self._parts.text
        with torch.no_grad(), texts.heard() as heard:
            encoded = texts.encode(prompts)
        places = standing(texts, heard, encoded.embeds, self._category)
        lacking = [p for p, found in zip(prompts, places, strict=True) if not found]
        if lacking:
            raise PerfusionError(
                f"learn_joint: {self._category!r} is not read of the prompt {lacking[0]!r}; choose "
                "a shorter template, or another word for the category."
            )
        return encoded, rows_told(places, encoded.embeds.shape[1], self._parts.device)

    def _sizes(self) -> dict[str, float]:
        """Root mean square of what each projection gives at the category's rows."""
        parts, found = self._parts, dict[str, float]()
        modules = dict(parts.denoiser.plain.named_modules())
        rows = self._rows[:1].bool()
        with contextlib.ExitStack() as stack, torch.no_grad():
            for place in self._targets:
                name, _, columns = place.partition("[")
                start, stop = map(int, columns.rstrip("]").split(":")) if columns else (0, None)

                def note(
                    _: object, __: object, output: Tensor, place: str = place,
                    part: slice = slice(start, stop),
                ) -> None:  # fmt: skip
                    read = output[:1, : rows.shape[1], part][rows]
                    found[place] = float(read.float().square().mean().sqrt())

                stack.callback(modules[name].register_forward_hook(note).remove)
            latents, time = parts.denoiser.probe_inputs(0, 0)
            parts.denoiser.forward(latents, time, self._text.rows([0]))
        return found

    # ---------------------------------------------------------------- the loop

    def work(self, *, shown: bool) -> None:
        """All steps that are left."""
        config, state = self._config, self._progress
        edits = placed_edits(self._parts, self._targets)
        with contextlib.ExitStack() as stack:
            attached = stack.enter_context(rk.attach(self._parts.denoiser.module, edits))
            interrupt = stack.enter_context(Interrupt(enabled=self._file is not None))
            advance = stack.enter_context(
                show_progress("learn", config.steps, done=state.step, shown=shown)
            )
            while state.step < config.steps:
                state.losses.append(self._step(attached, state.step))
                state.step += 1
                self._keep(now=interrupt.asked)
                recent = state.losses[-10:]
                advance(f"loss {sum(recent) / len(recent):.4f}")
                if interrupt.asked:
                    raise KeyboardInterrupt(
                        "learn_joint: interrupted; make the same call again to go on"
                    )

    def _step(self, attached: rk.Attachment, step: int) -> float:
        config, data, denoiser = self._config, self._data, self._parts.denoiser
        steps = train_steps(self._scheduler)
        drawn = draw(
            data, len(config.templates), steps, config.batch, flip=config.flip, seed=config.seed,
            step=step,
        )  # fmt: skip
        latents = data.latents[drawn.photos]
        times, noise = drawn.times.to(latents.device), drawn.noise.to(latents)
        told = told_times(self._scheduler, times)
        attached.tell(rows=self._rows[drawn.prompts], **self._timed(told / steps))
        noisy = self._scheduler.add_noise(latents, noise, times)
        text = self._text.rows(drawn.prompts)
        predicted = denoiser.run(noisy.to(denoiser.dtype), told, text, size=data.size)
        wanted = target_of(self._scheduler, latents, noise, times)
        even = torch.ones(len(times), device=latents.device)
        loss = masked_loss(predicted, wanted, data.masks[drawn.photos], even, "weighted")
        loss.backward()
        if not math.isfinite(value := loss.item()):
            raise PerfusionError(
                f"learn_joint: the loss of step {step} is {value}; lower the rate. The last "
                "checkpoint is as it was."
            )
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * config.rate_at(step)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return value

    def _timed(self, time: Tensor) -> dict[str, Tensor]:
        return {"time": time} if self._config.knots > 1 else {}

    # ---------------------------------------------------------------- keeping

    def keep_in(self, folder: Path) -> None:
        """Use a folder's checkpoint: go on from it if there is one."""
        task = {
            **self._config.deciding(),
            "placeholder": self._word,
            "category": self._category,
            "photos": self._data.digest,
            "base model": self._base,
        }
        self._file = CheckpointFile(folder / CHECKPOINT, task, self._config.steps)
        shapes = {
            f"{part}.{i}": torch.zeros(()) if part == "step" else target
            for i, target in enumerate(self._targets.values())
            for part in ("learned", "exp_avg", "exp_avg_sq", "step")
        }
        kept = self._file.read(shapes)
        if kept is not None:
            self._progress, state = kept
            self._restore(state)

    @torch.no_grad()
    def _restore(self, state: Mapping[str, Tensor]) -> None:
        for index, target in enumerate(self._targets.values()):
            target.copy_(state[f"learned.{index}"])
            self._optimiser.state[target] = {
                # Adam keeps its count on the CPU, its moments beside the parameter.
                "step": state[f"step.{index}"].clone(),
                **{n: state[f"{n}.{index}"].to(target) for n in ("exp_avg", "exp_avg_sq")},
            }

    def _keep(self, *, now: bool) -> None:
        step, config = self._progress.step, self._config
        if self._file is None:
            return
        if now or step % config.checkpoint_every == 0 or step == config.steps:
            state = {f"learned.{i}": t for i, t in enumerate(self._targets.values())}
            for index, target in enumerate(self._targets.values()):
                own = self._optimiser.state[target]
                state |= {f"{name}.{index}": value for name, value in own.items()}
            self._file.write(
                self._progress, {n: t.detach().cpu().clone() for n, t in state.items()}
            )

    def concept(self) -> JointConcept:
        """The concept as it is now."""
        kinds = {
            kind: {name: self._targets[name].detach()[0].cpu().clone() for name in names}
            for kind, names in self._names.items()
        }
        notes = {
            "model": self._parts.denoiser.name,
            "photos": f"{self._photos}, {self._data.digest}",
            "step": str(self._progress.step),
        }
        return JointConcept(self._word, self._category, **kinds, base=self._base, notes=notes)
