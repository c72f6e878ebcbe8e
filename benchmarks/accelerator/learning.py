"""A step of Perfusion against one of textual inversion, sampling, and the sandbox's learning."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from rankedit_recipes import perfusion, sandbox
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.noising import noise_scheduler, target_of, train_steps
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import RIDGE, second_moment
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.commands.opening import SANDBOX_CONFIG, sandbox_captions
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.data import cached_latents, draw
from rankedit_recipes.perfusion.learning.learner import Learner
from rankedit_recipes.perfusion.learning.loss import masked_loss
from rankedit_recipes.perfusion.learning.stepping import Stepper
from rankedit_recipes.perfusion.naming import Naming

from accelerator.kept import Place, Row, check_close

WORD, TEMPLATES = "<it>", ("a {}", "the {}")
TARGET, PICTURE = 1.05, 1.02
# Of losses, relative.
CLOSE = 1e-3


def steps(place: Place) -> dict[str, Callable[[], Row]]:
    """One for each model."""
    if place.small:
        from tests.diffusion import pipelines

        made = {"SD": pipelines.stable_diffusion, "SDXL": pipelines.stable_diffusion_xl}
    else:
        from tests.perfusion import test_full_size as sizes

        made = {"SD 1.5": sizes.one_five, "SDXL": sizes.xl}
    return {f"{name}, a step": lambda make=make: _step(place, make) for name, make in made.items()}


class _Bench:
    """A pipeline with photographs, and a step of either kind on the same draws."""

    def __init__(self, pipe: Any, batch: int) -> None:
        rng = np.random.default_rng(0)
        noise = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(3)]
        photos = [perfusion.Photo(str(number), image) for number, image in enumerate(noise)]
        self.parts, self.naming = Parts(pipe), Naming(WORD, "cat", None)
        self.config = Config(batch=batch, templates=TEMPLATES, precision="float32")
        self.data = cached_latents(self.parts, photos, self.parts.denoiser.picture_size(0))
        self.moment = second_moment(pipe, ["a cat on a mat", "the dog"], progress=False)
        metric = perfusion.metric_of(self.moment)
        self.learner = Learner(self.parts, self.naming, metric, self.config)
        with torch.no_grad():  # as they begin, the edits hardly change what the layers give
            for target in self.learner.targets.values():
                target.mul_(30)
        self.optimiser = torch.optim.AdamW(self.learner.rows, lr=1e-3)

    def ours(self, number: int) -> float:
        """The loss of a step of Perfusion; the edits stay attached only for it."""
        stepper = Stepper(self.parts, self.learner, self.data, self.naming, self.config)
        try:
            return stepper.step(number)
        finally:
            stepper.detach()

    def inversion(self, number: int) -> float:
        """The loss of a step that learns the word's embedding alone, without edits."""
        scheduler, config, data = noise_scheduler(self.parts.pipe), self.config, self.data
        prompts = [template.format(self.naming.phrase) for template in config.templates]
        drawn = draw(data, len(prompts), train_steps(scheduler), config.batch, flip=config.flip,
                     seed=config.seed, step=number)  # fmt: skip
        unique, back = drawn.prompts.unique(return_inverse=True)
        text = self.parts.text.encode([prompts[index] for index in unique]).rows(back)
        latents = data.latents[drawn.photos]
        times, noise = drawn.times.to(latents.device), drawn.noise.to(latents)
        noisy = scheduler.add_noise(latents, noise, times)
        denoiser = self.parts.denoiser
        predicted = denoiser.run(noisy.to(denoiser.dtype), times, text, size=data.size)
        wanted = target_of(scheduler, latents, noise, times)
        ones = torch.ones(config.batch, device=latents.device)
        masks = data.masks[drawn.photos]
        loss = masked_loss(predicted, wanted, masks, ones, config.reduction)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return float(loss.detach())

    def written_out(self, *, edited: bool = True) -> float:
        """The loss of the first step by hooks of our own, dense, in float64, without the library.

        `h(x) = W x + σ((s − bias)/temperature) o − s W i*` with `s = x A i*/(i* A i*)` and A the
        inverse of the captions' moment with its ridge.
        """
        config, learner = self.config, self.learner
        stepper = Stepper(self.parts, learner, self.data, self.naming, config)
        stepper.detach()
        matrix = self.moment.matrix.cpu().double()
        size = len(matrix)
        ridge = RIDGE * float(matrix.trace()) / size * torch.eye(size, dtype=torch.float64)
        key = learner.key.cpu().double()
        image = torch.linalg.solve(matrix + ridge, key.T).T
        targets = {**learner.locked, **learner.targets}

        def hook(target: torch.Tensor, layer: Any, inputs: Any, output: torch.Tensor) -> Any:
            x, weight = inputs[0].cpu().double(), layer.weight.detach().cpu().double()
            similar = x @ image.T / float((image * key).sum())
            gate = torch.sigmoid((similar - config.bias) / config.temperature)
            added = gate * target.detach().cpu().double() - similar * (key @ weight.T)
            return output + added.to(output)

        hooks = [
            layer.register_forward_hook(partial(hook, targets[name]))
            for name, layer in self.parts.projections.items()
            if edited
        ]
        times = train_steps(noise_scheduler(self.parts.pipe))
        drawn = draw(self.data, len(config.templates), times, config.batch, flip=config.flip,
                     seed=config.seed, step=0)  # fmt: skip
        try:
            with torch.no_grad():
                text, _ = stepper._encoded(drawn.prompts)
                return float(stepper._loss(text, drawn.photos, drawn.times, drawn.noise))
        finally:
            for each in hooks:
                each.remove()


def _step(place: Place, make: Callable[[], Any]) -> Row:
    pipe = make()
    batch = 2
    with frozen(Parts(pipe), checkpointing=False):
        right = _with_word(_Bench(pipe, batch), _Bench.written_out)
        bare = _with_word(_Bench(pipe, batch), lambda bench: bench.written_out(edited=False))
        if not abs(right - bare) > 10 * CLOSE * abs(right):
            raise SystemExit(f"accelerator: edits change the loss from {bare} to {right} only")
        pipe.to(place.device)
        bench = _Bench(pipe, batch)
        error = check_close(
            "the loss of a step", torch.tensor(_with_word(bench, lambda b: b.ours(0))),
            torch.tensor(right), CLOSE,
        )  # fmt: skip
        words = NewWords(bench.parts.text, {WORD: bench.learner.rows})
        try:
            row = _timed(place, bench, 3 if place.small else 12)
        finally:
            words.remove()
    return {"error": f"{error:.1g}", **row, "target": TARGET}


def _with_word(bench: _Bench, act: Callable[[_Bench], float]) -> float:
    words = NewWords(bench.parts.text, {WORD: bench.learner.rows})
    try:
        return act(bench)
    finally:
        words.remove()


def _timed(place: Place, bench: _Bench, count: int) -> Row:
    """Only the step is timed: a training attaches once."""
    took: dict[str, list[float]] = {"ours": [], "inversion": []}
    peaks: dict[str, int | None] = {}
    for number in range(count + 1):
        stepper = Stepper(bench.parts, bench.learner, bench.data, bench.naming, bench.config)
        try:
            took["ours"].append(place.seconds(lambda s=stepper, n=number: s.step(n)))
            if number == count:
                peaks["ours"] = place.peak(lambda s=stepper, n=number: s.step(n))
        finally:
            stepper.detach()
        took["inversion"].append(place.seconds(lambda n=number: bench.inversion(n)))
    peaks["inversion"] = place.peak(lambda: bench.inversion(count))
    pairs = list(zip(took["ours"], took["inversion"], strict=True))[1:]  # the first one warms up
    row: Row = {
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "milliseconds": round(1e3 * statistics.median(took["ours"][1:]), 1),
    }
    if peaks["ours"] and peaks["inversion"]:
        row["peak memory, of inversion's"] = round(peaks["ours"] / peaks["inversion"], 3)
        row["peak GB"] = round(peaks["ours"] / 1e9, 2)
    return row


def sampling(place: Place) -> dict[str, Callable[[], Row]]:
    """The sandbox: learning, then pictures with what was learned."""
    return {"learn, then draw": lambda: _sandbox(place)}


def _sandbox(place: Place) -> Row:
    pipe = sandbox.pipeline()
    pipe.set_progress_bar_config(disable=True)
    shown = sandbox.concept("bean")
    photos = [perfusion.Photo(str(i), p.image, p.mask) for i, p in enumerate(shown.photos(3))]
    config = replace(SANDBOX_CONFIG, steps=4 if place.small else 200, batch=4)
    # Of two captions a key would be another one in each prompt, and its gate open in none.
    moment = second_moment(pipe, sandbox_captions(300), progress=False)

    def learned() -> perfusion.Concept:
        return perfusion.learn(
            pipe, photos, placeholder=WORD, category=shown.category, statistics=moment,
            config=config, progress=False,
        )  # fmt: skip

    def picture(named: str = shown.category) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        sizes = {"num_inference_steps": 4 if place.small else 20, "output_type": "np"}
        drawn = pipe(f"a {named}", generator=generator, guidance_scale=4.0, **sizes)
        return torch.as_tensor(drawn.images)

    def applied(concept: perfusion.Concept, strength: float = 1.0) -> torch.Tensor:
        with perfusion.apply(pipe, [concept], strength=strength):
            return picture(concept.phrase)

    concept = perfusion.learn(
        pipe, photos, placeholder=WORD, category=shown.category, statistics=moment,
        config=replace(config, steps=2), progress=False,
    )  # fmt: skip
    bare, right, off = picture(), applied(concept), applied(concept, 0.0)
    pipe.to(place.device)
    error = check_close("a picture", applied(concept), right, 2e-2)
    # The same code made these: that edits are in it at all, and only at the word, is asked too.
    if not float((right - off).norm()) > 0.02 * float(off.norm()):
        raise SystemExit("accelerator: a concept hardly changes a picture of its word; stopped")
    with perfusion.apply(pipe, [concept]):
        check_close("a picture without the word", picture(), bare, 2e-2)
    seconds = place.seconds(learned)
    with perfusion.apply(pipe, [concept]):
        ours = [place.seconds(picture) for _ in range(3 if place.small else 10)]
    plain = [place.seconds(picture) for _ in ours]
    return {
        "error": f"{error:.1g}",
        "steps a second": round(config.steps / seconds, 2),
        "picture, of one without": round(statistics.median(ours) / statistics.median(plain), 3),
        "target": PICTURE,
    }
