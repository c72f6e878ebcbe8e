"""How soon an erased concept is back, for every method and for the gate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rankedit_recipes import concepts, perfusion

from benchmarks.erasing.asking import Concept, categories
from benchmarks.erasing.units import GATED, Unit, made, slug
from benchmarks.erasing.world import SAMPLING, World, strip
from rankedit.atomic import atomic_write

STEPS = (0, 50, 200)
# Ours, its gate and the published one first: what the comparison is of.
METHODS = ("covariance", GATED, "uce", "speed", "time", "rece")
_BATCH, _PICTURES = 4, 2
# As the sandbox's studies of Perfusion have them. Nothing is mirrored, as in textual inversion.
_PERFUSION = perfusion.Config(batch=_BATCH, flip=False, value_rate=0.3, embedding_rate=0.06)


def returning(concept: Concept, method: str) -> Unit:
    """Teach an erased category anew, by textual inversion and by Perfusion."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        told: dict[str, Any] = {
            "of": "returning", "method": method, "concepts": [concept.name], "steps": STEPS,
        }  # fmt: skip
        try:
            edited, _ = made(world, [concept.request], method)
        except concepts.ConceptsError as error:
            return told | {"refused": str(error)}

        def judge(pictures: Sequence[Image.Image], word: str) -> list[float]:
            seen = world.seen(np.stack([np.asarray(p.convert("RGB")) for p in pictures]))
            of = next(c for c in categories() if c.name == word)
            return [float(one) for one in of.shown(seen, ())]

        name = f"{concept.name}-{slug(method)}"
        assert edited is not None  # the published loop is `uce`, which has an edit
        found = concepts.probe(
            world.pipe, edited, judge,
            implicit={concept.name: [one.prompt for one in concept.implicit[::5]]},
            around=[c.name for c in categories() if c.name != concept.name][:2], neighbours=2,
            learners=[
                concepts.TextualInversion(batch=_BATCH), perfusion.Teacher(world.moment, _PERFUSION)
            ],
            steps=STEPS, pictures=_PICTURES, sampling=SAMPLING,
            # One folder for all methods: what the unedited model makes is the same.
            run=folder.parent / f"probe-{concept.name}",
        )  # fmt: skip
        found.save(folder.parent / f"probe-{name}.html")
        shares = found.shares()
        around = [share for (_, kind), share in shares.items() if kind == "around"]
        rows = [np.stack([np.asarray(p) for p in point.pictures[::2][:4]])
                for curve in found.curves for point in curve.points]  # fmt: skip
        with atomic_write(folder / f"back-{name}.png") as temporary:
            strip(rows).save(temporary, "PNG")
        return told | {
            "before": found.curves[0].before, "around": np.mean(around, 0).tolist(),
            "curves": {c.learner: [[p.step, p.shown] for p in c.points] for c in found.curves},
            "half": {c.learner: c.back() for c in found.curves},
        }  # fmt: skip

    return Unit(f"back-{concept.name}-{method}", work)


def returns() -> list[Unit]:
    """One category by every method."""
    cat = next(concept for concept in categories() if concept.name == "cat")
    return [returning(cat, method) for method in METHODS]
