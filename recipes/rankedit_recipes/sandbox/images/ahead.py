"""Batches for a device that must not wait: captions made ahead, pictures encoded once."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from .autoencoder import PatchAutoencoder
from .batches import Ready, captions_of, diffusion, weights_of
from .cache import Drawn
from .presets import Preset
from .skin_questions import label_table, skin_labels
from .tokenizer import build_tokenizer

ENCODED = 4096
"""Pictures that are encoded at a time."""

AHEAD = 4
"""Batches that each process has ready."""


class Told(NamedTuple):
    """What the processor knows of a step's batch.

    Attributes:
        indices: Numbers of the pictures, [n].
        tokens: Captions, 16 bit, [n, length].
        labels: From `label_table`, [n, questions, length]; no questions, if none are asked.
    """

    indices: Tensor
    tokens: Tensor
    labels: Tensor


def told_at(preset: Preset, tokenizer: PreTrainedTokenizerFast, step: int) -> Told:
    """Pictures, captions and answers of a step: a function of the seed and the step, as ever.

    Args:
        preset: Settings.
        tokenizer: Captions to tokens.
        step: Number of the step.

    Returns:
        The same pictures and captions as those of `make_batch`.
    """
    indices, tokens = captions_of(preset, tokenizer, step, range(preset.batch))
    labels = torch.empty(len(tokens), 0, tokens.shape[1], dtype=torch.int8)
    if preset.side:
        labels = label_table(skin_labels(tokens, tokenizer))
    # Small numbers travel as small ones: thousands of captions a second go between processes.
    return Told(torch.tensor(indices), tokens.to(torch.int16), labels)


class _Steps(Dataset[Told]):
    """All steps of a training; a tokenizer is built in each process that asks."""

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.tokenizer: PreTrainedTokenizerFast | None = None

    def __getitem__(self, step: int) -> Told:
        self.tokenizer = self.tokenizer or build_tokenizer(length=self.preset.length)
        return told_at(self.preset, self.tokenizer, step)


def told_ahead(preset: Preset, step: int, processes: int) -> Iterator[Told]:
    """Pictures and captions of one step after another, made while earlier ones are trained on.

    Args:
        preset: Settings; nothing that may change while the training runs is read.
        step: The first step.
        processes: How many make them; with 0 they are made when they are asked for.

    Returns:
        They, in order, without an end. The processes start now.
    """
    loader = DataLoader(
        _Steps(preset),
        batch_size=None,
        # The end may be set on the way, so there is none here.
        sampler=range(step, 2**62),
        num_workers=processes,
        prefetch_factor=AHEAD if processes else None,
        pin_memory=_on_cuda(preset),
        # Not forked: a fork that has seen the accelerator may hang.
        multiprocessing_context="spawn" if processes else None,
        worker_init_fn=_alone,
    )
    return iter(loader)


def _alone(_: int) -> None:
    # Each process would use all cores for its few captions.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _on_cuda(preset: Preset) -> bool:
    return torch.device(preset.device).type == "cuda"


class Gallery:
    """All pictures of a training as latents, on its device.

    Args:
        preset: Settings.
        drawn: The pictures.
        autoencoder: Pictures to latents; the one the training has, on the device.
    """

    @torch.no_grad()
    def __init__(self, preset: Preset, drawn: Drawn, autoencoder: PatchAutoencoder) -> None:
        cells, count = preset.size // preset.patch, len(drawn.pixels)
        # Channels last, in which rows are taken as they lie and convolutions read them.
        self.latents = torch.empty(count, cells, cells, preset.channels, device=preset.device)
        self.objects = torch.empty(count, cells, cells, dtype=torch.uint8, device=preset.device)
        for start in range(0, count, ENCODED):
            part = slice(start, start + ENCODED)
            # Copies, for files that are mapped read-only are no tensors.
            pixels, objects = (torch.from_numpy(array[part].copy()) for array in drawn)
            pictures = pixels.to(preset.device).permute(0, 3, 1, 2) / 127.5 - 1
            self.latents[part] = autoencoder.latents(pictures).permute(0, 2, 3, 1)
            self.objects[part] = objects.to(preset.device)

    def ready(self, preset: Preset, told: Told, step: int) -> Ready:
        """A step's batch, put together on the device.

        Args:
            preset: Settings, with the end as it is known now.
            told: From `told_ahead`.
            step: Number of the step.

        Returns:
            The batch. Its times and noise are drawn on the device (`diffusion`).
        """
        indices, tokens, labels = (
            part.to(preset.device, non_blocking=True).long() for part in told
        )
        times, noise = diffusion(preset, step, preset.device)
        return Ready(
            self.latents[indices].permute(0, 3, 1, 2),
            weights_of(preset, self.objects[indices]),
            tokens,
            labels,
            times,
            noise.contiguous(memory_format=torch.channels_last),
        )
