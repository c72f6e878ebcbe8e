"""Zero-shot transfer: concepts learned on the sandbox's model, used on a fine-tuned copy of it.

    python benchmarks/transfer.py --concepts FOLDER --out outputs/transfer

The folder is the one that `benchmarks/perfusion.py` names at its end. The copy's UNet is fine-tuned
on pictures of the same world in another style: squares of four pixels, few tones, an evening light
from violet above to orange below. The concept files are loaded into it as they are. Identity is
judged on the scale of the study, with photos in the style of the model that draws: 0 is a random
skin of the same category, 1 another real photo of the concept.
Everything is a function of the seeds; the copy is trained once and kept: remove it when the
sandbox's own weights have changed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rankedit_recipes import perfusion, sandbox
from rankedit_recipes.sandbox.images.cache import drawn_pictures, scene_of
from rankedit_recipes.sandbox.images.captions import DESCRIBED, caption
from rankedit_recipes.sandbox.images.identity import embed
from rankedit_recipes.sandbox.images.judge import judge
from rankedit_recipes.sandbox.images.loading import FILES, WEIGHTS
from rankedit_recipes.sandbox.images.samples import PROMPTS, generate, tile
from rankedit_recipes.sandbox.images.scenes import rng_of
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, SCENES
from safetensors.torch import save_file
from torch import Tensor

import rankedit as rk

PICTURES, SINGLES, BATCH, SEED = 6000, 2500, 24, 11
Style = Callable[[np.ndarray], np.ndarray]


def as_drawn(pixels: np.ndarray) -> np.ndarray:
    """The world's own style."""
    return pixels


def evening(pixels: np.ndarray) -> np.ndarray:
    """The other style; pixels [n, size, size, 3]."""
    count, size = pixels.shape[:2]
    half = size // 2
    coarse = pixels.astype(np.float32).reshape(count, half, 2, half, 2, 3).mean((2, 4))
    coarse = np.round(coarse / 51) * 51
    height = np.linspace(0, 1, half, dtype=np.float32)[None, :, None, None]
    above, below = np.array([120, 60, 170], np.float32), np.array([255, 150, 60], np.float32)
    mixed = 0.78 * coarse + 0.22 * ((1 - height) * above + height * below)
    whole = mixed.repeat(2, 1).repeat(2, 2)
    return whole.clip(0, 255).round().astype(np.uint8)


# ---------------------------------------------------------------------------- the copy


def fine_tuned(folder: Path, steps: int, rate: float) -> Path:
    """The folder of the fine-tuned copy, made if it is not there."""
    target = folder / f"copy-{steps}"
    if (target / FILES["unet"]).exists():
        return target
    drawn = drawn_pictures(
        folder / "cache", seed=SEED, count=PICTURES, singles=SINGLES, size=48, patch=4
    )
    pipe = sandbox.pipeline()
    unet = pipe.unet.requires_grad_(True).train()
    alphas = pipe.scheduler.alphas_cumprod
    optimiser = torch.optim.AdamW(unet.parameters(), lr=rate, weight_decay=0.0)
    generator, start, losses = torch.Generator().manual_seed(SEED), time.perf_counter(), []
    for step in range(steps):
        rows = torch.randint(PICTURES, (BATCH,), generator=generator).tolist()
        rng = rng_of("transfer", SEED, step)
        texts = [caption(scene_of(SEED, row, SINGLES), rng, described=DESCRIBED) for row in rows]
        texts = ["" if rng.random() < 0.08 else text for text in texts]
        pixels = torch.from_numpy(evening(drawn.pixels[sorted(rows)]))
        texts = [
            text for _, text in sorted(zip(rows, texts, strict=True), key=lambda pair: pair[0])
        ]
        with torch.no_grad():
            latents = pipe.vae.latents(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
            features = pipe.encode_prompt(texts, "cpu", 1, False)[0]
        times = torch.randint(1000, (BATCH,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = alphas[times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        loss = (unet(noisy, times, features).sample - velocity).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * min((step + 1) / 20, (steps - step) / steps)
        optimiser.step()
        losses.append(float(loss.detach()))
        if step % 50 == 49:
            mean = statistics.mean(losses[-50:])
            print(
                f"  step {step + 1}: loss {mean:.4f}, {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    scratch = folder / f"copy-{steps}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(WEIGHTS, scratch)
    weights = {name: value.half().contiguous() for name, value in unet.state_dict().items()}
    save_file(weights, scratch / FILES["unet"], {"format": "pt"})
    scratch.rename(target)
    return target


# ---------------------------------------------------------------------------- judging


class Judges:
    """The sandbox's judges, and the scale of a style."""

    def __init__(self) -> None:
        self.judge, self.identity = sandbox.attribute_judge(), sandbox.identity_embedding()

    def vectors(self, category: str, pixels: np.ndarray) -> Tensor:
        """Identity embeddings of the object of a category."""
        return embed(self.identity, self.judge, torch.from_numpy(pixels), category)

    def scale(self, concept: sandbox.Concept, style: Style) -> tuple[Tensor, float, float]:
        """The concept's anchor, and similarities to it of random skins and of other photos."""

        def seen(which: sandbox.Concept, count: int, seed: int) -> Tensor:
            photos = [np.asarray(p.image) for p in which.photos(count, seed=seed)]
            return self.vectors(concept.category, style(np.stack(photos)))

        anchor = seen(concept, 8, 7).mean(0)
        random = [sandbox.concept(9000 + i, category=concept.category) for i in range(8)]
        others = torch.cat([seen(other, 2, 8) for other in random])
        return anchor, float((others @ anchor).mean()), float((seen(concept, 8, 8) @ anchor).mean())

    def judged(
        self, concept: sandbox.Concept, pixels: np.ndarray, scenes: Sequence[str], style: Style
    ) -> dict[str, float]:
        """Identity, category and scene of pictures of a concept."""
        anchor, low, high = self.scale(concept, style)
        similar = float((self.vectors(concept.category, pixels) @ anchor).mean())
        verdict = judge(self.judge, torch.from_numpy(pixels))
        wanted = torch.tensor([list(SCENES).index(scene) for scene in scenes])
        present = verdict.present[:, CATEGORIES.index(concept.category)] > 0
        return {
            "identity": (similar - low) / (high - low),
            "category": float(present.float().mean()),
            "scene": float((verdict.scene.argmax(1) == wanted).float().mean()),
        }


def in_style(pixels: np.ndarray, drawn: np.ndarray) -> float:
    """How far pictures are from the world's own style (0) to the other one (1), by tint and grain.

    Args:
        pixels: pictures of a model.
        drawn: pictures of the world.
    """

    def looks(pictures: np.ndarray) -> np.ndarray:
        halves = pictures.reshape(len(pictures), 2, 24, 48, 3).mean((0, 2, 3)).ravel()
        blocks = pictures.reshape(-1, 24, 2, 24, 2, 3).astype(np.float32).std((2, 4)).mean()
        return np.append(halves, 10 * blocks)

    start, end = looks(drawn), looks(evening(drawn))
    return float((looks(pixels) - start) @ (end - start) / ((end - start) @ (end - start)))


def drawn_by(
    pipe: object,
    made: perfusion.Concept | str,
    prompts: Sequence[str],
    sampling: perfusion.Sampling,
) -> np.ndarray:
    """Pictures of templates with a concept, or with a word."""
    seeds = range(1000, 1000 + len(prompts))
    if isinstance(made, str):
        pictures = perfusion.generate(pipe, [p.format(made) for p in prompts], seeds, sampling)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rk.RankeditWarning)  # other weights: that is the point
            with perfusion.apply(pipe, made):
                texts = [p.format(made.phrase) for p in prompts]
                pictures = perfusion.generate(pipe, texts, seeds, sampling)
    return np.stack([np.asarray(picture) for picture in pictures])


def main() -> None:
    """Make the copy, use the concepts on both models, print what the judges see."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", required=True, help="folder of concept files NAME-5")
    parser.add_argument("--most", type=int, default=8, help="use at most so many of them")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--steps", type=int, default=500, help="of the fine-tuning")
    parser.add_argument("--rate", type=float, default=4e-4, help="of the fine-tuning")
    parser.add_argument("--out", default="outputs/transfer")
    args = parser.parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    models = {
        "original": (sandbox.pipeline(), as_drawn),
        "copy": (sandbox.pipeline(fine_tuned(folder, args.steps, args.rate)), evening),
    }
    drawn = np.load(next((folder / "cache").glob("*-48-4.npy")), mmap_mode="r")[:400]
    for name, (pipe, _) in models.items():
        pixels = generate(pipe, PROMPTS)
        tile(pixels, 8).save(folder / f"{name}.png")
        print(f"{name}: {in_style(pixels, drawn):.2f} of the way to the other style", flush=True)
    judges, rows, shown = Judges(), {}, []
    columns = min(8, args.prompts)
    sampling = perfusion.Sampling(steps=20, guidance=4.0, batch=8)
    for file in sorted(Path(args.concepts).glob("*-5.safetensors"))[: args.most]:
        name = file.stem.removesuffix("-5")
        number = name.removeprefix("concept-")
        concept = sandbox.concept(int(number) if number.isdigit() else number)
        made = perfusion.Concept.load(file)
        scenes = [list(SCENES)[index % len(SCENES)] for index in range(args.prompts)]
        prompts = [f"a photo of a {{}} {SCENES[scene][0]}" for scene in scenes]
        for model, (pipe, style) in models.items():
            for what, word in {"concept": made, "category word": concept.category}.items():
                pixels = drawn_by(pipe, word, prompts, sampling)
                found = judges.judged(concept, pixels, scenes, style)
                rows.setdefault((model, what), []).append(found)
                if what == "concept":
                    shown.append(pixels[:columns])
        print(name, {key[0]: round(r[-1]["identity"], 2) for key, r in rows.items() if "word" not in
                     key[1]}, flush=True)  # fmt: skip
    tile(np.concatenate(shown), columns).save(folder / "concepts.png")
    for (model, what), found in rows.items():
        for figure in found[0]:
            values = [row[figure] for row in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{model}, {what}: {figure:<9} {statistics.mean(values):.3f} ± {spread:.3f}")


if __name__ == "__main__":
    main()
