"""A text-to-image pipeline as recipes see it: what they ask of it again and again."""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rankedit_recipes.diffusion.calls import same
from rankedit_recipes.diffusion.denoising import Denoiser
from rankedit_recipes.diffusion.encoded import Encoded
from rankedit_recipes.diffusion.entrance import entrance as found_entrance
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.stopping import ended_when
from rankedit_recipes.diffusion.streams import Reader, readers, shaken
from rankedit_recipes.diffusion.targets import Targets, probed
from rankedit_recipes.diffusion.text import Pipeline, Texts

# By denoiser and not by pipeline: pipelines that share one find the same, once.
_found: WeakKeyDictionary[nn.Module, Targets] = WeakKeyDictionary()
_entrances: WeakKeyDictionary[nn.Module, Targets] = WeakKeyDictionary()
_pooled: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_readers: WeakKeyDictionary[nn.Module, tuple[Reader, ...]] = WeakKeyDictionary()


class Parts:
    """A pipeline's texts, its denoiser, and the projections between them.

    Made where a pipeline comes in, and passed on in its place. Making one costs nothing; the
    projections are searched for when they are first asked for, once for each denoiser.

    Args:
        pipe: a text-to-image pipeline of diffusers.
        entrance: where the denoiser makes no keys and values of the text alone, take the
            projections through which the text enters it as its targets, in place of an error.

    Attributes:
        pipe: the pipeline.
        text: what it makes of prompts.
        denoiser: what it samples with.
    """

    def __init__(self, pipe: Pipeline, *, entrance: bool = False) -> None:
        self.pipe = pipe
        self._entrance = entrance
        self.text = Texts(pipe)
        self.denoiser = Denoiser(pipe)

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, offloading included."""
        return self.text.device

    @property
    def targets(self) -> Targets:
        """Key and value projections of the denoiser, or its entrances.

        Raises:
            PipelineError: text and picture attend jointly, or nothing reads the text by itself;
                of entrances, that the text does not enter through one of them.
        """
        plain = self.denoiser.plain
        if plain in _found:
            return _found[plain]
        if self._entrance and plain in _entrances:
            return _entrances[plain]
        with torch.no_grad():
            try:
                _found[plain] = probed(self.text, self.denoiser)
            except PipelineError:
                if not self._entrance:
                    raise
                _entrances[plain] = found_entrance(self.text, self.denoiser)
                return _entrances[plain]
        return _found[plain]

    @property
    def readers(self) -> tuple[Reader, ...]:
        """All attention that reads the text, joint attention too.

        Raises:
            PipelineError: nothing reads the text, or its tokens do not keep their order.
        """
        plain = self.denoiser.plain
        if plain not in _readers:
            _readers[plain] = readers(self.text, self.denoiser)
        return _readers[plain]

    @property
    def pooled(self) -> bool:
        """Whether the denoiser is told a prompt in a pooled vector beside its tokens."""
        plain = self.denoiser.plain
        if plain not in _pooled:
            with torch.no_grad():
                _pooled[plain] = self._told_pooled()
        return _pooled[plain]

    def _told_pooled(self) -> bool:
        text = self.text.encode(["a photo of the night by the sea"])
        if text.pooled is None:
            return False
        latents, time = self.denoiser.probe_inputs(0, 0)
        other = replace(text, pooled=shaken(text.pooled))
        given = [self.denoiser.forward(latents, time, one) for one in (text, other)]
        return not same(*given)

    @property
    def projections(self) -> dict[str, nn.Module]:
        """The layers of the targets by name, keys before values."""
        return self.targets.modules(self.denoiser.plain)

    def reads(self, encoded: Encoded) -> Tensor:
        """What the key and value projections read of encoded prompts, `[batch, tokens, width]`.

        That is the text encoder's output, or what the denoiser makes of it before attention.
        """
        if self.targets.direct:
            return encoded.embeds
        count = len(encoded.embeds)
        if self.targets.entrances and count > 1:
            # One by one, for some put all prompts of a batch into one sequence.
            return torch.cat([self.reads(encoded.rows([index])) for index in range(count)])
        first = self.projections[self.targets.names[0]]
        # Any picture and time will do: what is read depends on the text alone, or it was not found.
        latents, time = self.denoiser.probe_inputs(0, 0, count)
        read = ended_when(lambda: self.denoiser.forward(latents, time, encoded), first)
        start, length = self.targets.first, encoded.embeds.shape[1]
        every = read.reshape(count, -1, read.shape[-1])
        return every[:, start : start + length] if self.targets.entrances else every


def find_targets(pipe: Pipeline) -> Targets:
    """Key and value projections of a pipeline's denoiser; probed once for each denoiser.

    Raises:
        PipelineError: text and picture attend jointly, or nothing reads the text by itself.
    """
    return Parts(pipe).targets
