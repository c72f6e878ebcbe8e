"""One real call of a pipeline, with its denoiser, scheduler and autoencoder stood in for.

The pipeline encodes prompts, prepares latents and loops over times as always; a script answers in
place of its networks. Nothing of the pipeline is left changed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from rankedit_recipes.diffusion.calls import Call, Path, kept
from rankedit_recipes.diffusion.errors import PipelineError

Pipeline = Any  # any diffusers pipeline that turns a prompt into a picture

# What asks for one frame, for the size that is given, and for calls of which each says all (later
# ones of Qwen-Image 2.1 leave the text to a cache); pipelines have some of these.
ONE_FRAME = {"num_frames": 1, "video_length": 1}
_PLAIN = {**ONE_FRAME, "use_resolution_binning": False, "use_kv_cache": False}

_local = threading.local()


@contextlib.contextmanager
def unanswered() -> Iterator[None]:
    """Denoisers answer for themselves, even inside a call that is answered by a script."""
    # A global lock runs the denoiser while prompts are encoded.
    before = is_unanswered()
    _local.unanswered = True
    try:
        yield
    finally:
        _local.unanswered = before


def is_unanswered() -> bool:
    """Whether a denoiser runs for a recipe, and not for a picture."""
    return bool(getattr(_local, "unanswered", False))


class Reached(BaseException):
    """Ends a pipeline's call. No error: pipelines that catch those must not go on."""


class RefusedError(PipelineError):
    """A pipeline refuses what it was asked."""


class Script(Protocol):
    """What answers in place of the networks; any of the three may raise `Reached`."""

    def called(self, call: Call) -> Any:  # noqa: ANN401 - as the denoiser
        """What the denoiser gives first."""

    def stepped(self, output: Tensor, time: Any, sample: Tensor) -> Tensor:  # noqa: ANN401
        """Latents after a step of the scheduler."""

    def decoded(self, latents: Tensor) -> NoReturn:
        """The autoencoder was given latents."""


class First:
    """Keeps the first calls of the denoiser, all with the same latents, and ends there.

    Args:
        wanted: so many calls, one in each step.
        picture: where the latents stand, for calls that are not the last.

    Attributes:
        calls: what came.
    """

    def __init__(self, wanted: int, picture: Path | None) -> None:
        self._wanted, self._picture, self.calls = wanted, picture, list[Call]()

    def called(self, call: Call) -> Any:  # noqa: ANN401 - as the denoiser
        """Keep it."""
        if len(self.calls) + 1 == self._wanted or self._picture is None:
            # As it is: the text has its graph.
            self.calls.append(call)
            raise Reached
        self.calls.append(Call(kept(call.args), kept(call.kwargs), call.rows))
        # Of a shape that the pipeline knows how to go on with; latents stay what they are.
        return call.at(self._picture)

    def stepped(self, output: Tensor, time: Any, sample: Tensor) -> Tensor:  # noqa: ANN401
        """Latents as they were."""
        return sample

    def decoded(self, latents: Tensor) -> NoReturn:
        """Too few steps."""
        raise Reached


@dataclass(frozen=True)
class Asking:
    """What a pipeline is asked for.

    Attributes:
        pipe: the pipeline.
        module: its denoiser, as the pipeline calls it.
        size: edge of pictures in pixels; the pipeline's own if None.
        guidance: scale of guidance that this pipeline takes for none.
    """

    pipe: Pipeline
    module: nn.Module
    size: int | None
    guidance: float = 1.0

    def first_calls(
        self, prompts: Sequence[str], *, steps: int = 1, picture: Path | None = None, seed: int = 0
    ) -> list[Call]:
        """The calls of the denoiser that the pipeline makes for prompts, one in each step.

        Args:
            prompts: for one picture each.
            steps: of sampling.
            picture: where the latents stand; needed for several steps.
            seed: of the noise.

        Raises:
            PipelineError: the pipeline does not run with prompts alone, or ends without a call.
        """
        script = First(steps, picture)
        self.play(prompts, script, steps=steps, seed=seed)
        if len(script.calls) < steps:
            raise PipelineError(
                f"diffusion: {type(self.pipe).__name__} made {len(script.calls)} calls of its "
                f"{type(self.module).__name__} in {steps} steps; use a text-to-image pipeline."
            )
        return script.calls

    def play(
        self, prompts: Sequence[str], script: Script, *, steps: int = 1, seed: int = 0
    ) -> None:
        """Call the pipeline, answered by a script, until that ends it.

        Args:
            prompts: for one picture each.
            script: answers.
            steps: of sampling.
            seed: of the noise.

        Raises:
            RefusedError: the pipeline refuses; says why.
            PipelineError: it lacks a library.
        """
        # Without the decorator that turns gradients off: learning a word needs them.
        run = inspect.unwrap(type(self.pipe).__call__)
        known = inspect.signature(run).parameters
        given: dict[str, Any] = {
            **_PLAIN,
            "prompt": list(prompts),
            "num_inference_steps": steps,
            "guidance_scale": self.guidance,
            "true_cfg_scale": self.guidance,
            "generator": torch.Generator().manual_seed(seed),
        }
        if self.size is not None:
            given |= {"height": self.size, "width": self.size}
        given = {name: value for name, value in given.items() if name in known}
        with _standing_in(self.pipe, self.module, len(prompts), script):
            try:
                run(self.pipe, **given)
            except Reached:
                return
            except PipelineError:
                raise
            # Pipelines raise nearly anything for what they do not like.
            except Exception as error:
                raise _refused(self.pipe, error) from error


def _refused(pipe: Pipeline, error: Exception) -> PipelineError:
    name = type(pipe).__name__
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, (ImportError, NameError)):
        # diffusers imports ftfy and bs4 only where they are installed, and uses them anyway (0.42).
        return PipelineError(
            f"diffusion: {name} needs a library that is not installed ({said}); install it."
        )
    return RefusedError(
        f"diffusion: {name} cannot be run with a prompt alone, which is how it is found out how it "
        f"calls its denoiser ({said}); use a text-to-image pipeline with all its parts."
    )


@contextlib.contextmanager
def _standing_in(pipe: Pipeline, module: nn.Module, rows: int, script: Script) -> Iterator[None]:
    own: dict[str, Any] = pipe.__dict__
    before = dict(own)
    with contextlib.ExitStack() as stack:
        if getattr(pipe, "_all_hooks", None):
            # As pipelines do at their end: parts that were offloaded go back to main memory. Last
            # of all, for that notes new hooks on the pipeline.
            stack.callback(pipe.maybe_free_model_hooks)
        # What the pipeline notes of a call, and all that is put into it here.
        stack.callback(_restore, own, before)
        # Draws from torch's own generator must not move what the user draws next.
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(_quiet())
        own["_progress_bar_config"] = {"disable": True}
        own["scheduler"] = _scheduler(pipe.scheduler, script)
        stack.enter_context(_answered(module, rows, script))
        vae = getattr(pipe, "vae", None)
        if isinstance(vae, nn.Module):
            stack.enter_context(_undecoded(vae, script))
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warnings of settings that the user did not choose."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _restore(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if now.get(name) is not value:
            now[name] = value


class _Given(tuple[Any, ...]):
    """What diffusers' networks and schedulers give: a tuple, or by name."""

    @property
    def sample(self) -> Any:  # noqa: ANN401 - whatever was given
        return self[0]

    prev_sample = sample


def _scheduler(scheduler: Any, script: Script) -> Any:  # noqa: ANN401 - a scheduler of diffusers
    stand_in = copy.deepcopy(scheduler)

    # With the signature of its own: pipelines look at that.
    @functools.wraps(stand_in.step)
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, **__: Any) -> _Given:  # noqa: ANN401
        return _Given((script.stepped(model_output, timestep, sample),))

    stand_in.step = step
    if hasattr(stand_in, "scale_model_input"):
        stand_in.scale_model_input = lambda sample, *_, **__: sample
    return stand_in


@contextlib.contextmanager
def _answered(module: nn.Module, rows: int, script: Script) -> Iterator[None]:
    """The class of a module is one whose call is answered, on this thread."""
    own, thread = type(module), threading.get_ident()

    # The class, for a hook would be compiled into a module that is compiled.
    class Answered(own):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            elsewhere = self is not module or threading.get_ident() != thread
            if elsewhere or is_unanswered():
                return super().__call__(*args, **kwargs)
            return _Given((script.called(Call(args, kwargs, rows)),))

    Answered.__name__, Answered.__qualname__ = own.__name__, own.__qualname__
    # Of the object itself: a compiled module hands what is set on it to the one inside.
    object.__setattr__(module, "__class__", Answered)
    try:
        yield
    finally:
        object.__setattr__(module, "__class__", own)


@contextlib.contextmanager
def _undecoded(vae: nn.Module, script: Script) -> Iterator[None]:
    own: Callable[..., Any] | None = vars(vae).get("decode")
    vars(vae)["decode"] = lambda latents, *_, **__: script.decoded(latents)
    try:
        yield
    finally:
        if own is None:
            del vars(vae)["decode"]
        else:
            vars(vae)["decode"] = own
