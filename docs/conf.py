"""Configuration of the documentation build; everything works without a network."""

import importlib.metadata
import re
from typing import Annotated, get_args, get_origin

from rankedit import shapes

project = "rankedit"
author = "The rankedit authors"
project_copyright = "The rankedit authors"
release = importlib.metadata.version("rankedit")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
nitpicky = True
# torch and the standard library are named, not linked: their inventories would need a network.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|Tensor|nn|numpy|np|collections|pathlib|functools|re|os|typing|abc)(\..*)?"),
    (r"py:.*", r"(Value|Lookup|Runtime|OS)Error|UserWarning|Exception|KeyboardInterrupt"),
    # Private: in signatures of what the library makes by itself.
    (r"py:.*", r"rankedit\.(factors\.Factors|models\.\w+\.(Geometry|Installed)|[\w.]+\.Batch)"),
    (
        r"py:.*",
        r"rankedit\.(files\.lora_layouts\.Suffixes|models\.(reaching\.Watch|telling\.Context)|[\w.]+\._\w+)",
    ),
    (r"py:.*", r"rankedit\.(spectra\.Guard|originals\.Original)"),
]

myst_enable_extensions = ["amsmath", "attrs_inline", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False

# Docstrings write code in single backquotes.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"rankedit {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

COLON = chr(0xE000)  # of the private use area: in no docstring
SHAPE_NAMES = {
    get_args(value)[1]: name
    for name, value in vars(shapes).items()
    if get_origin(value) is Annotated
}


def hide_colons(app, what, name, obj, options, lines):
    """Keep napoleon from reading `E[x]: the mean` on a property as a type and a description."""
    if what in ("property", "attribute"):
        lines[:] = [line.replace(":", COLON) for line in lines]


def show_colons(app, what, name, obj, options, lines):
    lines[:] = [line.replace(COLON, ":") for line in lines]


def convert_tables(app, what, name, obj, options, lines):
    """Make reStructuredText of `| a | b |` tables."""
    converted = []
    for line in lines:
        indent, cells = line[: len(line) - len(line.lstrip())], line.strip().strip("|").split(" | ")
        is_row = line.strip().startswith("|")
        if is_row and set(line.strip()) <= set("|- "):
            continue
        if is_row and not (converted and converted[-1].startswith(f"{indent}     - ")):
            converted += [f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
        if is_row:
            marks = ["*", *" " * (len(cells) - 1)]
            converted += [
                f"{indent}   {m} - {cell.strip()}" for m, cell in zip(marks, cells, strict=True)
            ]
        else:
            converted.append(line)
    lines[:] = converted


def name_shapes(app, what, name, obj, options, signature, return_annotation):
    """Write `Keys` for `Annotated[Tensor, '[n, in]']`; the API page says what the names mean."""

    def named(text):
        pattern = r"[~\w.]*Annotated\[[~\w.]*Tensor, '(\[[^']*\])'\]"
        return re.sub(pattern, lambda match: "~rankedit.shapes." + SHAPE_NAMES[match[1]], text)

    return tuple(text and named(text) for text in (signature, return_annotation))


def setup(app):
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", convert_tables, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
    app.connect("autodoc-process-signature", name_shapes)
