"""Learn a concept: the loop, and nothing else that could be elsewhere."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

import rankedit as rk
from rankedit.interrupt import Interrupt
from rankedit.progress import progress as show_progress
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.generating import generate
from rankedit_recipes.diffusion.noising import noise_scheduler
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import metric_of, second_moment
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.applying.applied import check_free
from rankedit_recipes.perfusion.applying.apply import apply
from rankedit_recipes.perfusion.applying.base import base_of, sketch_of
from rankedit_recipes.perfusion.concept import Concept, unstacked
from rankedit_recipes.perfusion.learning.checkpoints import CheckpointFile, Progress
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.data import Latents, cached_latents
from rankedit_recipes.perfusion.learning.learner import Learner, learned_names
from rankedit_recipes.perfusion.learning.photos import Photo, Source, load_photos
from rankedit_recipes.perfusion.learning.planning import check_denoiser
from rankedit_recipes.perfusion.learning.stepping import Stepper
from rankedit_recipes.perfusion.learning.validation import Validation
from rankedit_recipes.perfusion.locks import PRESETS
from rankedit_recipes.perfusion.naming import Naming, check_naming
from rankedit_recipes.perfusion.prompts import filled, in_words, word_encoding

CHECKPOINT = "checkpoint.safetensors"
CONCEPT = "concept.safetensors"
HISTORY = "history.json"


def learn(
    pipe: Pipeline,
    photos: Source,
    *,
    placeholder: str,
    category: str,
    statistics: rk.SecondMoment | Sequence[str],
    config: Config | None = None,
    validation: Validation | None = None,
    run: str | PathLike[str] | None = None,
    progress: bool = True,
) -> Concept:
    """Teach a pipeline a new thing from a few photos of it, one is enough to begin.

    Learned are the embedding of the new word and one value vector for each value projection (under
    the coarse lock of the finest level only, and keys there). What the lock holds stays that of the
    word that the new one stands for. The pipeline is left as it was; `apply` puts the concept in.

    Args:
        pipe: a pipeline with cross-attention on its text and a scheduler of diffusion or flow
            matching.
        photos: a folder, a file, or pictures; see `load_photos`.
        placeholder: the word for it in prompts, such as `"<bean>"`.
        category: what kind of thing it is, in words that the model knows, such as `"cat"`.
        statistics: of what cross-attention reads (`second_moment`), or captions to make them of.
        config: how to learn.
        validation: judge the concept on the way and keep its best state; else the last one is kept.
        run: folder for checkpoints, the concept and its history. If a training was interrupted,
            the same call goes on where it stopped, with the same result to the bit.
        progress: show it.

    Raises:
        PerfusionError: something about the photos, words or the model; says what to do.
        KeyboardInterrupt: Ctrl-C; with a run folder the newest state is written first.
    """
    check_free(pipe, "learn")
    config = config or Config()
    naming = Naming(placeholder, category, config.adjective)
    parts = Parts(pipe)
    learned_names(parts, config.lock)  # refused now; before words, which need a known tokenizer
    check_naming(parts.text, naming, config.vectors)
    loaded = load_photos(photos)
    if not isinstance(statistics, rk.SecondMoment):
        statistics = second_moment(pipe, statistics, tokens=config.tokens, progress=progress)
    with frozen(parts, checkpointing=config.checkpointing):
        training = _Training(parts, loaded, naming, statistics, config)
        training.validation = validation
        if run is not None:
            Path(run).mkdir(parents=True, exist_ok=True)
            training.keep_in(Path(run))
        training.work(shown=progress)
        return training.result(None if run is None else Path(run))


class _Training:
    """One call of `learn`."""

    def __init__(
        self,
        parts: Parts,
        photos: list[Photo],
        naming: Naming,
        moment: rk.SecondMoment,
        config: Config,
    ) -> None:
        self._parts, self._config, self._photos = parts, config, photos
        self._naming, self._word = naming, naming.trigger
        # Both refuse what cannot be learned on before anything is computed.
        noise_scheduler(parts.pipe)
        check_denoiser(parts)
        self._metric = metric_of(moment, config.ridge)
        self._base, self._sketch = base_of(parts), sketch_of(parts)
        size = parts.denoiser.picture_size(config.size)
        self._data: Latents = cached_latents(parts, photos, size)
        self._learner = Learner(parts, naming, self._metric, config)
        self._kept_key()  # a context that cuts the word off is refused now, not after all steps
        self._progress = Progress()
        self._file: CheckpointFile | None = None
        self.validation: Validation | None = None

    # ---------------------------------------------------------------- the loop

    def work(self, *, shown: bool) -> None:
        """All steps that are left."""
        config, state = self._config, self._progress
        self._words = NewWords(self._parts.text, {self._word: self._learner.rows})
        with contextlib.ExitStack() as stack:
            stack.callback(self._forget)
            stepper = Stepper(self._parts, self._learner, self._data, self._naming, config)
            stack.callback(stepper.detach)
            interrupt = stack.enter_context(Interrupt(enabled=self._file is not None))
            advance = stack.enter_context(
                show_progress("learn", config.steps, done=state.step, shown=shown)
            )
            while state.step < config.steps and not self._stale():
                loss = stepper.step(state.step)
                state.step += 1
                state.losses.append(loss)
                self._validate(stepper)
                self._checkpoint(now=interrupt.asked)
                advance(self._note())
                if interrupt.asked:
                    raise KeyboardInterrupt(self._interrupted())

    # A method, for judging exchanges the words that the loop began with.
    def _forget(self) -> None:
        self._words.remove()

    # ---------------------------------------------------------------- judging

    def _validate(self, stepper: Stepper) -> None:
        state, judge = self._progress, self.validation
        due = state.step % self._config.validate_every == 0 or state.step == self._config.steps
        if judge is None or not due:
            return
        prompts = filled(judge.prompts, self._naming.phrase)
        with self._as_it_will_be(stepper), torch.no_grad():
            made = generate(self._parts.pipe, prompts, range(len(prompts)), judge.sampling)
        shown = [photo.square(self._data.size).image for photo in self._photos]
        scores = judge.scorer(made, in_words(judge.prompts, self._naming.category), shown)
        # Asked before its own row is among those that it is compared with.
        better = scores.balance > state.best_balance
        state.validations.append([state.step, scores.picture, scores.text, scores.balance])
        if better:
            state.best_step, state.best = state.step, self._learner.state()

    @contextlib.contextmanager
    def _as_it_will_be(self, stepper: Stepper) -> Iterator[None]:
        """The concept applied with its own settings, in place of what is being learned."""
        # Out first: what is being learned and the concept made of it must not both act.
        stepper.detach()
        self._words.remove()
        try:
            with apply(self._parts.pipe, self._concept()):
                yield
        finally:
            self._words = NewWords(self._parts.text, {self._word: self._learner.rows})
            stepper.renew()

    def _stale(self) -> bool:
        return 0 < self._config.patience <= self._progress.stale()

    def _note(self) -> str:
        recent = self._progress.losses[-10:]
        note = f"loss {sum(recent) / len(recent):.4f}"
        if self._progress.validations:
            _, picture, text, _ = self._progress.validations[-1]
            note += f", picture {picture:.3f}, text {text:.3f}"
        return note

    # ---------------------------------------------------------------- keeping

    def keep_in(self, folder: Path) -> None:
        """Use a folder's checkpoint: go on from it if there is one."""
        judge = self.validation
        # Each by name, so that a training that is not this one can say what was different.
        task = {
            **self._config.deciding(),
            "placeholder": self._word,
            "category": self._naming.category,
            "photos": self._data.digest,
            "base model": self._base,
            "statistics": self._metric.fingerprint,
            "validation": "" if judge is None else f"{judge.prompts}, {judge.sampling}",
        }
        self._file = CheckpointFile(folder / CHECKPOINT, task, self._config.steps)
        kept = self._file.read(self._shapes())
        if kept is not None:
            self._progress, state = kept
            self._learner.restore(state)

    def _shapes(self) -> dict[str, Tensor]:
        """Tensors of the shapes that a state has after the first step."""
        shapes = self._learner.state()
        for index, tensor in enumerate(self._learner.parameters()):
            shapes |= {f"{name}.{index}": tensor for name in ("exp_avg", "exp_avg_sq")}
            shapes[f"step.{index}"] = torch.zeros(())
        return shapes

    def _checkpoint(self, *, now: bool) -> None:
        step = self._progress.step
        # Also at the last step, so that calling again with the same steps returns at once.
        due = now or step % self._config.checkpoint_every == 0 or step == self._config.steps
        if self._file is not None and (due or self._stale()):
            self._file.write(self._progress, self._learner.state())

    def _interrupted(self) -> str:
        file = self._file.path if self._file else ""
        return f"learn: interrupted; make the same call again to go on from '{file}'"

    def result(self, folder: Path | None) -> Concept:
        """The concept as its file gives it, rounded to half precision."""
        if self._progress.best:
            self._learner.restore(self._progress.best)
        concept = self._concept()
        if folder is None:
            with tempfile.TemporaryDirectory() as temporary:
                return _through_file(concept, Path(temporary) / CONCEPT)
        history = {
            "losses": self._progress.losses,
            "validations": self._progress.validations,
            "best_step": self._progress.best_step or self._progress.step,
        }
        (folder / HISTORY).write_text(json.dumps(history), encoding="utf-8")
        (folder / "config.toml").write_text(self._config.to_toml(), encoding="utf-8")
        return _through_file(concept, folder / CONCEPT)

    def _concept(self) -> Concept:
        learner, config = self._learner, self._config
        preset = PRESETS[config.lock].learned_from(len(self._photos))
        key = self._kept_key().cpu()
        return Concept(
            trigger=self._word,
            category=self._naming.category,
            adjective=self._naming.adjective,
            key=unstacked(key),
            image=unstacked(self._metric.guarded.solve(key).float()),
            targets={n: unstacked(t.detach().cpu()) for n, t in learner.targets.items()},
            embeddings=[row.detach().cpu() for row in learner.rows],
            lock=config.lock,
            bias=preset.bias,
            temperature=preset.temperature,
            floor=preset.floor,
            templates=config.templates,
            statistics=learner.statistics,
            base=self._base,
            sketch=self._sketch,
            notes=self._notes(),
        )

    def _kept_key(self) -> Tensor:
        """`i* [vectors, in]` of the concept: the average of the training, or over all contexts."""
        config, phrase = self._config, self._naming.phrase
        if not config.contexts:
            return self._learner.key.detach()
        # See docs/decisions/a-key-for-every-place.md.
        prompts = filled((*config.templates, *config.contexts), phrase)
        words = NewWords(self._parts.text, {self._word: self._learner.rows})
        try:
            return torch.atleast_2d(word_encoding(self._parts, self._word, prompts))
        finally:
            words.remove()

    def _notes(self) -> Mapping[str, str]:
        return {
            "model": self._parts.denoiser.name,
            "photos": f"{len(self._photos)}, {self._data.digest}",
            "step": str(self._progress.best_step or self._progress.step),
            "config": self._config.digest(),
        }


def _through_file(concept: Concept, path: Path) -> Concept:
    concept.save(path)
    return Concept.load(path)
