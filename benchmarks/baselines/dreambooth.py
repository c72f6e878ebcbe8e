"""DreamBooth (Ruiz et al., arXiv 2208.12242): the whole U-Net, a rare word, prior preservation."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from personalisation.methods import Artefact, Kept, Settings, Subject
from personalisation.training import fit, prior_task, task_of
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.parts import Parts
from safetensors.torch import load_file

from baselines.weights import moved, restored


class DreamBooth:
    """Scales go from the base model's weights (0) to the tuned ones (1)."""

    name = "DreamBooth"
    rates = (8e-5, 3.2e-4, 1.28e-3)
    scales = searched = (0.5, 0.75, 1.0)
    usual = 1.0

    def phrase(self, subject: Subject) -> str:
        """A rare word before the category."""
        return f"{subject.rare} {subject.category}"

    def train(
        self, pipe: Any, subject: Subject, settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Learn all weights of the U-Net, with pictures of the category to keep it what it is."""
        unet = Parts(pipe).denoiser.plain
        kept = Kept(subject, folder)
        prior = prior_task(pipe, subject.category, settings)
        own = task_of(pipe, subject.photos, self.phrase(subject), masked=settings.masked)
        weights = dict(unet.named_parameters())
        with frozen(Parts(pipe), checkpointing=False), restored(weights):
            unet.requires_grad_(True)
            fit(pipe, [{"params": list(weights.values())}], [own, prior], settings,
                lambda step: kept.write(step, weights))  # fmt: skip
        return kept.artefacts

    def apply(self, pipe: Any, artefact: Artefact, scale: float) -> AbstractContextManager[None]:
        """Exchange the U-Net's weights."""
        weights = dict(Parts(pipe).denoiser.plain.named_parameters())
        return moved(weights, load_file(artefact.file), scale)
