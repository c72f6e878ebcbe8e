"""LoRAs through PEFT: DreamBooth's on all attention, and the smallest one on keys and values."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model_state_dict
from personalisation.methods import Artefact, Kept, Settings, Subject
from personalisation.training import fit, task_of
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.words import NewWords
from safetensors.torch import load_file
from torch import Tensor, nn

from baselines.textual_inversion import first_rows, row_names, rows_of

TRAINING = "learned_here"


@contextlib.contextmanager
def adapter(unet: Any, config: LoraConfig) -> Iterator[list[nn.Parameter]]:
    """A fresh LoRA in a U-Net for the block; gives its parameters."""
    unet.add_adapter(config, adapter_name=TRAINING)
    try:
        yield [p for name, p in unet.named_parameters() if f".{TRAINING}." in name]
    finally:
        unet.unload_lora()


def learned(unet: Any) -> dict[str, Tensor]:
    """The tensors of the LoRA that is being trained, named as its files name them."""
    return dict(get_peft_model_state_dict(unet, adapter_name=TRAINING))


@contextlib.contextmanager
def loaded(unet: Any, tensors: Mapping[str, Tensor], name: str, scale: float) -> Iterator[None]:
    """A LoRA in a U-Net for the block, beside those that are in already."""
    before = dict(getattr(unet, "_study_scales", {}))
    flags = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
    own = {key: value.to(unet.dtype) for key, value in tensors.items()}
    with warnings.catch_warnings():  # several adapters are what is wanted
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        unet.load_lora_adapter(own, prefix=None, adapter_name=name)
    scales = {**before, name: scale}
    unet.set_adapters(list(scales), list(scales.values()))
    unet._study_scales = scales
    try:
        yield
    finally:
        unet._study_scales = before
        if before:
            unet.delete_adapters(name)
            unet.set_adapters(list(before), list(before.values()))
        else:
            unet.unload_lora()
        for parameter, flag in flags:  # PEFT switches those of all other weights off
            parameter.requires_grad_(flag)


def _name(subject: Subject) -> str:
    """An adapter's name: PEFT's may not have a dot."""
    return subject.name.replace(".", "_")


class DreamBoothLora:
    """DreamBooth's rare word with a LoRA on all attention, as diffusers' script has it.

    Args:
        rank: of the LoRA.
    """

    rates = (2e-3, 8e-3, 3.2e-2)
    scales = searched = (0.5, 0.75, 1.0)
    usual = 1.0

    def __init__(self, rank: int) -> None:
        self.rank, self.name = rank, f"DreamBooth-LoRA, rank {rank}"

    def phrase(self, subject: Subject) -> str:
        """A rare word before the category."""
        return f"{subject.rare} {subject.category}"

    def train(
        self, pipe: Any, subject: Subject, settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Learn the LoRA; the script's default has no prior preservation."""
        config = LoraConfig(
            r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )  # fmt: skip
        unet, kept = Parts(pipe).denoiser.plain, Kept(subject, folder)
        task = task_of(pipe, subject.photos, self.phrase(subject), masked=settings.masked)
        with frozen(Parts(pipe), checkpointing=False), adapter(unet, config) as parameters:
            fit(pipe, [{"params": parameters}], [task], settings,
                lambda step: kept.write(step, learned(unet)))  # fmt: skip
        return kept.artefacts

    def apply(
        self, pipe: Any, artefact: Artefact, scale: float
    ) -> contextlib.AbstractContextManager[None]:
        """Load the LoRA with a weight."""
        unet = Parts(pipe).denoiser.plain
        return loaded(unet, load_file(artefact.file), _name(artefact.subject), scale)


class TokenLora:
    """A new word and a LoRA of rank 1 on the keys and values of the text.

    Perfusion's parameters without its gate, its statistics and its lock.
    """

    name = "rank-1 LoRA on K and V, with a new word"
    rates = (1e-3, 4e-3, 1.6e-2)
    scales = searched = (0.5, 0.75, 1.0)
    usual = 1.0

    def phrase(self, subject: Subject) -> str:
        """The new word."""
        return subject.word

    def train(
        self, pipe: Any, subject: Subject, settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Learn word and LoRA at one rate."""
        targets = Parts(pipe).targets
        names = [*targets.keys, *targets.values]
        config = LoraConfig(r=1, lora_alpha=1, init_lora_weights="gaussian", target_modules=names)
        unet, kept = Parts(pipe).denoiser.plain, Kept(subject, folder)
        rows = [row.requires_grad_() for row in first_rows(pipe, subject.category)]
        with frozen(Parts(pipe), checkpointing=False), contextlib.ExitStack() as stack:
            words = NewWords(Parts(pipe).text, {subject.word: rows})
            stack.callback(words.remove)
            parameters = stack.enter_context(adapter(unet, config))
            task = task_of(pipe, subject.photos, subject.word, masked=settings.masked)
            fit(pipe, [{"params": [*rows, *parameters]}], [task], settings,
                lambda step: kept.write(step, row_names(rows) | learned(unet)))  # fmt: skip
        return kept.artefacts

    @contextlib.contextmanager
    def apply(self, pipe: Any, artefact: Artefact, scale: float) -> Iterator[None]:
        """Put the word in and load the LoRA with a weight."""
        tensors = load_file(artefact.file)
        lora = {name: t for name, t in tensors.items() if not name.startswith("embedding.")}
        subject, unet = artefact.subject, Parts(pipe).denoiser.plain
        words = NewWords(Parts(pipe).text, {subject.word: rows_of(tensors)})
        try:
            with loaded(unet, lora, _name(subject), scale):
                yield
        finally:
            words.remove()
