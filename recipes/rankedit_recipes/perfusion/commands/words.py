"""What a concept is called when nobody says so."""

from __future__ import annotations

import re
from pathlib import Path

from rankedit_recipes.perfusion.errors import PerfusionError


def derived_placeholder(photos: Path, out: Path | None) -> str:
    """A word of the concept file's name, or else of the photos': no two concepts share it unasked.

    Raises:
        PerfusionError: neither has a letter or a digit in its name.

    Example:
        >>> derived_placeholder(Path("photos/My bean"), None)
        '<my-bean>'
        >>> derived_placeholder(Path("photos"), Path("mug.safetensors"))
        '<mug>'
    """
    # Resolved, for `.` has no name.
    name = photos.resolve().stem if out is None else out.stem
    # Lower case, for CLIP's tokenizer lowers everything else in a prompt.
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not word:
        raise PerfusionError(
            f"learn: no word can be made of the name {name!r}; give --placeholder, such as "
            "'<bean>'."
        )
    return f"<{word}>"


def concept_file(placeholder: str) -> Path:
    """The file of a concept when nobody says where.

    Example:
        >>> str(concept_file("<bean>"))
        'bean.safetensors'
    """
    return Path(re.sub(r"[^\w-]+", "", placeholder) or "concept").with_suffix(".safetensors")
