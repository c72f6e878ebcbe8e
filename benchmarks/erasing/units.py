"""The units: each erases something by one method, and measures what is left of it and of others."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rankedit_recipes import concepts
from rankedit_recipes.concepts.edited import Edited

from benchmarks.erasing.asking import Concept, categories, colours, obeyed, styles, taken
from benchmarks.erasing.published import published
from benchmarks.erasing.world import World, strip
from rankedit.atomic import atomic_write

PUBLISHED, GATED = "uce, published loop", "covariance, gated"
MAIN = ("covariance", GATED, PUBLISHED)
DIRECT, IMPLICIT, OTHERS = 12, 8, 12
_GATE_CAPTIONS = 1000


@dataclass(frozen=True)
class Unit:
    """One thing to compute.

    Attributes:
        name: of its file.
        work: what computes it.
    """

    name: str
    work: Callable[[World, Path], dict[str, Any]]


def made(
    world: World, requests: Sequence[concepts.Request], method: str
) -> tuple[Edited | None, Callable[[], AbstractContextManager[object]]]:
    """The edit, and what puts it into the pipeline."""
    if method == PUBLISHED:
        goals = [(word, "".join(r.to)) for r in requests for word in r.words]
        return None, lambda: published(world.pipe, goals)
    name = method.removesuffix(", gated")
    edited = concepts.edit(
        world.pipe, requests, method=name, statistics=world.moment, progress=False
    )
    if method.endswith(", gated"):
        edited = concepts.gated(world.pipe, edited, world.captions[:_GATE_CAPTIONS])
    return edited, lambda: edited.attach(world.pipe)


def plain(concept: Concept) -> Unit:
    """What the unedited model makes of a concept's prompts."""

    def work(world: World, folder: Path) -> dict[str, Any]:
        told: dict[str, Any] = {"of": "plain", "kind": concept.kind, "concepts": [concept.name]}
        for name, asked, count in _asked(concept):
            some = taken(asked, count)
            pictures = world.pictures(some)
            told[name] = _share(concept.shown(world.seen(pictures), some))
            _keep(folder / f"{name}-{concept.name}.npy", pictures[:4])
        return told

    return Unit(f"plain-{concept.name}", work)


def erased(method: str, group: Sequence[Concept], title: str = "") -> Unit:
    """Concepts erased together by a method."""
    name = title or "-".join(concept.name for concept in group)

    def work(world: World, folder: Path) -> dict[str, Any]:
        told: dict[str, Any] = {
            "of": "erased", "method": method, "kind": title or group[0].kind,
            "concepts": [concept.name for concept in group],
        }  # fmt: skip
        # Now: in the block of the edit it would be made with it.
        world.pool()
        start = time.perf_counter()
        try:
            edited, entered = made(world, [c.request for c in group], method)
        except concepts.ConceptsError as error:
            return told | {"refused": str(error)}
        with entered():
            seconds = time.perf_counter() - start
            found = _measured(world, group, folder / f"{slug(method)}-{name}.png")
        return told | found | {"seconds": seconds, "rank": edited.map.rank if edited else None}

    return Unit(f"{name}-{slug(method)}", work)


def _measured(world: World, group: Sequence[Concept], file: Path) -> dict[str, Any]:
    """What the edited model makes; the block of the edit is the caller's."""
    found: dict[str, Any] = {}
    shown: dict[str, list[bool]] = {"direct": [], "implicit": []}
    kept = []
    for concept in group:
        for name, asked, count in _asked(concept):
            some = taken(asked, max(4, count // len(group)))
            pictures = world.pictures(some)
            shown[name] += concept.shown(world.seen(pictures), some)
            kept += list(pictures[: max(1, 4 // len(group))]) if name == "direct" else []
    asked, before, another = world.pool()
    free = [i for i, one in enumerate(asked) if not any(c.said_by(one) for c in group)]
    places = free[:: max(1, len(free) // OTHERS)][:OTHERS]
    after = world.same_noise(places)
    some = [asked[i] for i in places]
    scale = np.abs(before[places].astype(float) - another[places]).mean()
    found["changed"] = float(np.abs(after.astype(float) - before[places]).mean() / scale)
    for name, pictures in (("others", after), ("others before", before[places])):
        found[name] = _share(obeyed(world.seen(pictures), some))
    _picture(file, [np.stack(kept[:4]), before[places][:4], after[:4]])
    return {name: _share(each) for name, each in shown.items()} | found


def orders(group: Sequence[Concept], count: int = 10) -> Unit:
    """One after another in so many orders, against all together."""

    def work(world: World, _: Path) -> dict[str, Any]:
        requests = [concept.request for concept in group]
        whole, _ = made(world, requests, "covariance")
        assert whole is not None
        generator, apart, undone = np.random.default_rng(0), [], []
        settings = {"method": "covariance", "statistics": world.moment, "progress": False}
        for _turn in range(count):
            order = [requests[i] for i in generator.permutation(len(requests))]
            edited = concepts.edit(world.pipe, order[:1], **settings)
            first = edited.map.delta()
            for request in order[1:]:
                edited = concepts.add(world.pipe, edited, [request])
            apart.append(_apart(edited.map.delta(), whole.map.delta()))
            left = edited.without(*[r.name for r in order[1:]])
            undone.append(_apart(left.map.delta(), first))
        return {"of": "orders", "concepts": [c.name for c in group], "orders": count,
                "apart": max(apart), "undone": max(undone)}  # fmt: skip

    return Unit("orders", work)


def study() -> list[Unit]:
    """All units that make pictures by prompts, what matters most first."""
    things, shades, looks = categories(), colours(), styles()
    mixed = [*things[:4], *shades[:4]]
    # From each kind in turn, so that a run that is stopped has something of all of them.
    each = [things[0], shades[0], looks[0], *things[1:4], *shades[1:4], looks[1], *things[4:7],
            *shades[4:6], looks[2], *things[7:], *shades[6:], looks[3]]  # fmt: skip
    found = [unit for c in each for unit in (plain(c), *(erased(m, [c]) for m in MAIN))]
    for method in MAIN:
        found.append(erased(method, things[:5], "five categories"))
        found.append(erased(method, mixed, "four categories, four colours"))
    return [*found, orders(things[:5])]


def slug(text: str) -> str:
    """As names of files have it."""
    return "-".join(text.replace(",", "").split())


def computed(unit: Unit, folder: Path, world: Callable[[], World]) -> dict[str, Any]:
    """A unit's figures: from its file, or computed and written there."""
    file = folder / f"{slug(unit.name)}.json"
    if not file.exists():
        pictures = folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        told = unit.work(world(), pictures)
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def known(units: Sequence[Unit], folder: Path) -> list[dict[str, Any]]:
    """Figures of the units that are done."""
    files = [folder / f"{slug(unit.name)}.json" for unit in units]
    return [json.loads(f.read_text(encoding="utf-8")) for f in files if f.exists()]


def _asked(concept: Concept) -> list[tuple[str, Any, int]]:
    return [("direct", concept.direct, DIRECT), ("implicit", concept.implicit, IMPLICIT)]


def _share(each: Sequence[bool]) -> list[int]:
    """How many of how many."""
    return [sum(each), len(each)]


def _apart(one: Any, other: Any) -> float:
    return float((one - other).norm() / other.norm())


def _keep(file: Path, pictures: np.ndarray) -> None:
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, pictures)


def _picture(file: Path, rows: Sequence[np.ndarray]) -> None:
    with atomic_write(file) as temporary:
        strip(rows).save(temporary, "PNG")
