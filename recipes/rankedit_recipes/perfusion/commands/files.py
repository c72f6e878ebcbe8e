"""What the commands about concept files do, without the command line."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import rankedit as rk
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.perfusion.applying.exporting import export_embedding, export_lora
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError

# Above this the LoRA is another edit: a quarter of what it adds is not what the concept adds.
_FAR = 0.25
_HUGE = 10.0


def export_to(
    pipe: Pipeline | None, concept: Path, embedding: Path | None, lora: Path | None, layout: str
) -> Iterator[str]:
    """Write the exports that were asked for."""
    if embedding is not None:
        export_embedding(concept, embedding)
        yield f"{embedding}: the word, for pipe.load_textual_inversion"
    if lora is not None and pipe is not None:
        error = export_lora(pipe, concept, lora, layout=layout)
        yield f"{lora}: linearised edit; differs from the gated one by {_share(error)}"
        if error > _FAR:
            warnings.warn(
                "export: what the LoRA adds to prompts with the word is far from what the concept "
                "adds: a LoRA has no gate, so that it also changes words only like the new one, "
                "and pictures are less like the photos or the prompt. "
                f"Compare some before you pass it on; `rankedit perfusion generate {concept}` and "
                "its --strength show the concept itself.",
                rk.RankeditWarning,
                stacklevel=2,
            )


def _share(error: float) -> str:
    # Where the gate hardly opens the concept adds next to nothing; any share of that is huge.
    return f"{error:.0%}" if error < _HUGE else f"more than {_HUGE:.0%}"


def described(path: Path) -> Iterator[str]:
    """Lines that say what a concept file holds."""
    concept = Concept.load(path)
    yield f"{path}: {path.stat().st_size:,} bytes"
    yield f"  word: {concept.trigger}, a {concept.category}; prompts say '{concept.phrase}'"
    yield f"  stands for {concept.naming.origin!r} of the model"
    yield f"  key lock: {concept.lock}; {concept.gate}"
    targets = counted(len(concept.targets), "learned target")
    yield f"  {targets}; encoding {concept.keys.shape[1]} wide"
    several = f"{concept.vectors} of each, " if concept.vectors > 1 else ""
    widths = ", ".join(str(row.shape[-1]) for row in concept.embeddings)
    yield f"  embeddings: {several}{widths} wide"
    yield f"  base model {concept.base or 'unknown'}, statistics {concept.statistics or 'unknown'}"
    for name, text in concept.notes.items():
        yield f"  {name}: {text}"


def renamed_to(path: Path, placeholder: str, out: Path) -> Iterator[str]:
    """Write a concept under another word.

    Raises:
        PerfusionError: the word has spaces, or is the one that the concept has.
    """
    concept = Concept.load(path)
    # Whether a tokenizer takes the word only a model can tell: `apply` refuses it then.
    if not placeholder or placeholder.split() != [placeholder]:
        raise PerfusionError(
            f"rename: --placeholder must be one word without spaces, got {placeholder!r}; for "
            "example '<bean>'."
        )
    if placeholder == concept.trigger:
        raise PerfusionError(f"rename: '{path}' has the word {placeholder!r} already.")
    renamed = concept.renamed(placeholder)
    renamed.save(out)
    yield f"{out}: {out.stat().st_size:,} bytes; prompts say '{renamed.phrase}'"
