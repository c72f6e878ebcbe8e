"""Reports as one HTML file: pictures, plots and tables in it, nothing beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: #1d2330; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr));
  gap: .75rem; } figure { margin: 0; min-width: 0; }
figure img { width: 100%; border-radius: .3rem; image-rendering: auto; }
figcaption { font-size: .8rem; color: #4a5264; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .plot { width: 100%; min-width: 34rem; height: auto; }
table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #dde1e8; }
td:not(:first-child) { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { color: #e4e7ee; background: #14171d; }
  figcaption { color: #a8b0c0; } td, th { border-color: #303644; } .plot { background: #fff; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file, under a title."""
    # A word such as <bean> would be taken for an element.
    title = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"{''.join(parts)}</body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A heading and what stands under it; nothing if there is nothing."""
    return f"<h2>{html.escape(title)}</h2>{content}" if content else ""


def gallery(pictures: Mapping[str, Image.Image]) -> str:
    """Pictures side by side, as many as fit, each over its name."""
    figures = "".join(
        f'<figure><img alt="{html.escape(name, quote=True)}" src="{_data(picture)}">'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, picture in pictures.items()
    )
    return f'<div class="gallery">{figures}</div>' if figures else ""


# Within the page, so that the report can be passed on as one file.
def _data(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def figure(figure: Any, name: str) -> str:  # noqa: ANN401 - a figure of matplotlib
    """A figure of matplotlib, scrolled where it does not fit."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    data = base64.b64encode(stream.getvalue()).decode()
    # On a narrow screen a plot is scrolled rather than shrunk until it cannot be read.
    picture = f'<img class="plot" alt="{name}" src="data:image/png;base64,{data}">'
    return f'<div class="scroll">{picture}</div>'


def table(rows: Mapping[str, str]) -> str:
    """Names and what is said of each."""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>"
        for name, text in rows.items()
    )
    return f'<div class="scroll"><table>{cells}</table></div>'
