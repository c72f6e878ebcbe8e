"""The page with pictures, and the tables as files, of as many units as are done."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rankedit_recipes.concepts.probing.found import plotted
from rankedit_recipes.concepts.probing.relearning import Curve, Point
from rankedit_recipes.diffusion.pages import figure, page, section

from benchmarks.erasing import tables
from benchmarks.erasing.units import MAIN, slug
from rankedit.atomic import atomic_write

# Pictures of so many erasures are on the page: it is kept under 200 KB.
_SHOWN = 4
_EDGE = 48


def write(rows: Sequence[tables.Row], total: int, pictures: Path, results: Path) -> None:
    """Write `units.json`, `tables.md` and `report.html`.

    Args:
        rows: of the units that are done.
        total: units there are.
        pictures: folder of their strips.
        results: where to.
    """
    done = f"{len(rows)} of {total} units are done."
    text = {
        "Erased": tables.erasing(rows),
        "Each (direct, implicit, others changed)": tables.each(rows),
        "Taught anew": tables.returning(rows),
        "At full size": tables.costs(rows),
    }
    orders = tables.of(rows, "orders")
    told = "".join(
        f"{len(r['concepts'])} categories one after another in {r['orders']} orders: at most "
        f"{r['apart']:.1e} from all at once, {r['undone']:.1e} after taking all but the first out "
        "again, relative.\n"
        for r in orders
    )
    parts = [f"## {title}\n\n{table}" for title, table in text.items() if table]
    _written(
        results / "tables.md", f"{done}\n\n" + "\n".join(parts) + (f"\n{told}" if told else "")
    )
    _written(results / "units.json", json.dumps(list(rows), indent=1) + "\n")
    sections = [f"<p>{escape(done)}</p>", *(section(n, _table(t)) for n, t in text.items())]
    sections.insert(3, section("How soon a cat is back", _curves(rows)))
    sections.append(section("Before and after", _strips(rows, pictures)))
    _written(results / "report.html", page("Concepts erased on the sandbox", sections))


def _curves(rows: Sequence[tables.Row]) -> str:
    found, shown = tables.of(rows, "returning"), ""
    for learner in found[0]["curves"] if found else ():
        curves = [
            Curve("cat", learner, row["before"],
                  tuple(Point(step, share, ()) for step, share in row["curves"][learner]))
            for row in found
        ]  # fmt: skip
        plot = plotted(curves, [row["method"] for row in found])
        plot.axes[0].set_title(learner)
        shown += figure(plot, f"presence by steps of {learner}")
    return shown


def _strips(rows: Sequence[tables.Row], pictures: Path) -> str:
    """For each erasure a strip: before, after, and what was kept, before and after."""
    shown = []
    for row in [r for r in tables.of(rows, "erased") if r["method"] == MAIN[1]][:_SHOWN]:
        name = "-".join(row["concepts"]) if len(row["concepts"]) == 1 else row["kind"]
        before = pictures / f"direct-{row['concepts'][0]}.npy"
        strips = {m: pictures / f"{slug(m)}-{name}.png" for m in MAIN}
        if before.exists() and len(row["concepts"]) == 1:
            shown.append(_strip(name, before, strips))
    return "".join(shown)


def _strip(name: str, before: Path, strips: Mapping[str, Path]) -> str:
    made: dict[str, Any] = {
        f"{name}: unedited": Image.fromarray(np.concatenate(np.load(before), 1))
    }
    for method, file in strips.items():
        if file.exists():
            with Image.open(file) as image:
                whole = image.convert("RGB")
            made[f"{name}: {method}"] = whole.crop((0, 0, whole.width, _EDGE))
            if method == "covariance":
                kept = whole.crop((0, _EDGE, whole.width, 2 * _EDGE))
                made["others: unedited"] = kept
            made[f"others: {method}"] = whole.crop((0, 2 * _EDGE, whole.width, 3 * _EDGE))
    return _gallery(made)


def _gallery(made: Mapping[str, Image.Image]) -> str:
    """As the kit's, with strips as WebP and wider than single pictures."""
    shown = ""
    for name, strip in made.items():
        stream = io.BytesIO()
        # Lossless they would take 20 KB each; what is in a picture is seen as well.
        strip.save(stream, "WEBP", quality=75)
        data = base64.b64encode(stream.getvalue()).decode()
        shown += (
            f'<figure><img alt="{escape(name, quote=True)}" src="data:image/webp;base64,{data}">'
            f"<figcaption>{escape(name)}</figcaption></figure>"
        )
    wide = "grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); margin: 1rem 0"
    return f'<div class="gallery" style="{wide}">{shown}</div>'


def _table(text: str) -> str:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line[:4] != "|---"]
    if not lines:
        return ""
    head, *rest = lines
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rest
    )
    # Scrolled on a narrow screen, rather than broken within words.
    table = f'<table style="min-width: 58rem"><tr>{cells}</tr>{body}</table>'
    return f'<div class="scroll">{table}</div>'


def _written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
