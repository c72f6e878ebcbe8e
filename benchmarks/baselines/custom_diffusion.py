"""Custom Diffusion (Kumari et al., arXiv 2212.04488): K and V of the text, and a new word."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from personalisation.methods import Artefact, Kept, Settings, Subject
from personalisation.training import TEMPLATES, Task, fit, prior_task, task_of
from rankedit_recipes.diffusion.encoded import at_positions
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.words import NewWords
from safetensors.torch import load_file
from torch import Tensor, nn

import rankedit as rk
from baselines.textual_inversion import first_rows, rows_of
from baselines.weights import moved, restored

# Two templates' encodings of a word are nearly parallel: each is met up to a small squared error.
SOFTNESS = 1e-3


def weights_of(pipe: Any) -> dict[str, nn.Parameter]:
    """The weights of all keys and values of the text, by name of their layer."""
    modules = Parts(pipe).projections
    return {name: module.weight for name, module in modules.items()}


class CustomDiffusion:
    """Scales go from the base model's weights (0) to the tuned ones (1)."""

    name = "Custom Diffusion"
    rates = (2e-4, 8e-4, 3.2e-3)
    scales = searched = (0.5, 0.75, 1.0)
    usual = 1.0

    def phrase(self, subject: Subject) -> str:
        """The new word before the category."""
        return f"{subject.word} {subject.category}"

    def train(
        self, pipe: Any, subject: Subject, settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Learn K, V and the word, with regularisation pictures of the category."""
        return self.train_jointly(pipe, [subject], settings, folder)

    def train_jointly(
        self, pipe: Any, subjects: Sequence[Subject], settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Learn several subjects at once: one set of weights, and a word for each."""
        weights, kept = weights_of(pipe), Kept(subjects[0], folder)
        rows = {
            s.word: [row.requires_grad_() for row in first_rows(pipe, s.category)] for s in subjects
        }
        tasks: list[Task] = [
            task for s in subjects for task in self._tasks(pipe, s, rows[s.word], settings)
        ]
        with (
            frozen(Parts(pipe), checkpointing=False),
            restored(weights),
            contextlib.ExitStack() as stack,
        ):
            words = NewWords(Parts(pipe).text, rows)
            stack.callback(words.remove)
            for weight in weights.values():
                weight.requires_grad_(True)
            learned = [*weights.values(), *(row for own in rows.values() for row in own)]
            fit(pipe, [{"params": learned}], tasks, settings,
                lambda step: kept.write(step, _tensors(weights, rows)))  # fmt: skip
        return kept.artefacts

    def _tasks(
        self, pipe: Any, subject: Subject, rows: Sequence[Tensor], settings: Settings
    ) -> list[Task]:
        own = task_of(pipe, subject.photos, self.phrase(subject), masked=settings.masked)
        return [own, prior_task(pipe, subject.category, settings)]

    @contextlib.contextmanager
    def apply(self, pipe: Any, artefact: Artefact, scale: float) -> Iterator[None]:
        """Put the words in and exchange the weights."""
        tensors = load_file(artefact.file)
        rows = _rows(tensors, artefact.subject.word)
        tuned = {n: t for n, t in tensors.items() if not n.startswith("embedding.")}
        words = NewWords(Parts(pipe).text, rows)
        try:
            with moved(weights_of(pipe), tuned, scale):
                yield
        finally:
            words.remove()

    @contextlib.contextmanager
    def merged(
        self, pipe: Any, artefacts: Sequence[Artefact], statistics: rk.SecondMoment
    ) -> Iterator[None]:
        """Separately tuned weights as one, in closed form.

        What each concept's words give is kept, and what all other text gives changes as little as
        possible.

        Args:
            pipe: the pipeline.
            artefacts: of different subjects.
            statistics: of what keys and values read, over captions.
        """
        loaded = [load_file(artefact.file) for artefact in artefacts]
        rows: dict[str, list[Tensor]] = {}
        for artefact, tensors in zip(artefacts, loaded, strict=True):
            rows |= _rows(tensors, artefact.subject.word)
        words = NewWords(Parts(pipe).text, rows)
        try:
            keys = [self._keys(pipe, artefact.subject) for artefact in artefacts]
            metric = rk.Metric.from_moment(statistics, ridge=1e-3)
            edits = {
                name: _joint(weight, keys, [t[name].float() for t in loaded], metric)
                for name, weight in weights_of(pipe).items()
            }
            with rk.attach(Parts(pipe).denoiser.module, edits):
                yield
        finally:
            words.remove()

    def _keys(self, pipe: Any, subject: Subject) -> Tensor:
        """Encodings `[n, in]` of the new word and of the category behind it, in the templates."""
        prompts = [template.format(self.phrase(subject)) for template in TEMPLATES]
        with torch.no_grad():
            parts = Parts(pipe)
            encoded = parts.text.encode(prompts)
            read = parts.reads(encoded)
            places = [
                parts.text.required_positions(prompts, encoded, word)
                for word in (subject.word, subject.category)
            ]
            return torch.cat([at_positions(read, place) for place in places])


def _joint(
    weight: Tensor, keys: Sequence[Tensor], tuned: Sequence[Tensor], metric: rk.Metric
) -> rk.LowRank:
    values = [k @ w.to(k).T for k, w in zip(keys, tuned, strict=True)]
    every = torch.cat(list(keys))
    softness = SOFTNESS * float(metric.inner(every, every).diagonal().mean())
    return rk.solve_edit(weight.detach(), every, torch.cat(values), metric, softness=softness)


def _tensors(
    weights: Mapping[str, Tensor], rows: Mapping[str, Sequence[Tensor]]
) -> dict[str, Tensor]:
    words = {
        f"embedding.{word}.{index}": row
        for word, own in rows.items()
        for index, row in enumerate(own)
    }
    return {**weights, **words}


def _rows(tensors: Mapping[str, Tensor], word: str) -> dict[str, list[Tensor]]:
    """The rows of all words in a file, the artefact's own among them."""
    words = dict.fromkeys(
        name.removeprefix("embedding.").rpartition(".")[0]
        for name in tensors
        if name.startswith("embedding.")
    )
    found = {
        known: rows_of({n: t for n, t in tensors.items() if n.startswith(f"embedding.{known}.")})
        for known in words
    }
    if word not in found:
        raise KeyError(f"Custom Diffusion: the file knows the words {list(found)}, not {word!r}.")
    return found
