"""What the gate does to each token of a prompt, as a table and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.diffusion.vectors import vector_names
from rankedit_recipes.perfusion.applying.apply import active
from rankedit_recipes.perfusion.errors import PerfusionError


@dataclass(frozen=True, eq=False)
class Explanation:
    """The gates of one prompt.

    Attributes:
        prompt: the prompt.
        tokens: its tokens, padding included.
        shown: which of them are words or ends, `[tokens]`.
        triggers: words of the concepts.
        similarity: to each key, by kind of projection ("keys", "values") `[tokens, keys]`.
        opening: of each gate, likewise.
        keys: what each key belongs to: a concept's word, or one of the vectors of such a word.
    """

    prompt: str
    tokens: list[str]
    shown: Tensor
    triggers: tuple[str, ...]
    similarity: dict[str, Tensor]
    opening: dict[str, Tensor]
    keys: tuple[str, ...]

    def leak(self, trigger: str, kind: str = "values") -> float:
        """How far a concept's gates open, at most, at any token that is not of its word."""
        # Of a word of several vectors the keys stand side by side, the word's own name first.
        first = self.keys.index(trigger)
        count = 1
        while f"{trigger}_{count}" in self.keys[first + count : first + count + 1]:
            count += 1
        own = self.keys[first : first + count]
        others = [i for i, token in enumerate(self.tokens) if _plain(token) not in own]
        return float(self.opening[kind][others, first : first + count].max())

    def table(self) -> Any:  # noqa: ANN401 - a table of rich
        """A table of rich: similarity and opening per token, concept and kind of projection."""
        from rich.table import Table

        table = Table(title=self.prompt)
        table.add_column("token", no_wrap=True)
        for kind in self.opening:
            for key in self.keys:
                table.add_column(f"{key}\n{kind}\nsimilarity", justify="right")
                table.add_column("\n\nopening", justify="right")
        for index, token in enumerate(self.tokens):
            if bool(self.shown[index]):
                table.add_row(_plain(token), *self._cells(index))
        # Dozens of places that say nearly the same: the most open one stands for all.
        hidden = [i for i in range(len(self.tokens)) if not bool(self.shown[i])]
        if hidden:
            widest = max(
                hidden, key=lambda i: max(float(o[i].max()) for o in self.opening.values())
            )
            table.add_row(f"padding ({len(hidden)}), most open", *self._cells(widest))
        return table

    def _cells(self, index: int) -> list[str]:
        cells = []
        for kind, opening in self.opening.items():
            for column in range(len(self.keys)):
                cells.append(f"{float(self.similarity[kind][index, column]):.2f}")
                cells.append(f"{float(opening[index, column]):.3f}")
        return cells

    def plot(self) -> Any:  # noqa: ANN401 - a figure of matplotlib
        """A figure of matplotlib: openings as a heat map, one panel for each kind of projection."""
        # Not pyplot, which would choose a backend and keep every figure.
        from matplotlib.figure import Figure

        kept = [i for i in range(len(self.tokens)) if bool(self.shown[i])]
        height = len(self.opening) * (1.3 + 0.35 * len(self.keys))
        figure = Figure(figsize=(max(4.0, 0.55 * len(kept)), height), layout="constrained")
        axes = figure.subplots(len(self.opening), 1, squeeze=False)[:, 0]
        for panel, (kind, opening) in zip(axes, self.opening.items(), strict=True):
            grid = opening[kept].T.numpy()
            # One scale for all prompts, or a leak of 0.01 would shine where nothing is more open.
            panel.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            panel.set_yticks(range(len(self.keys)), self.keys)
            panel.set_xticks(range(len(kept)), [_plain(self.tokens[i]) for i in kept], rotation=45)
            panel.set_title(f"opening of the gate: {kind}", fontsize=9)
            for row in range(grid.shape[0]):
                for column in range(grid.shape[1]):
                    value = grid[row, column]
                    # Viridis is light from there on.
                    colour = "black" if value > 0.6 else "white"
                    panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour,
                               fontsize=7)  # fmt: skip
        return figure


def explain(pipe: Pipeline, prompt: str, *, show: bool = True) -> Explanation:
    """What the gates of the concepts in a pipeline do to each token of a prompt.

    The gate is the same in all layers, because all read the same encoding; under the global lock
    keys read another one than values.

    Args:
        pipe: a pipeline with concepts in it.
        prompt: the prompt.
        show: print the table.

    Raises:
        PerfusionError: no concept is in the pipeline, or the prompt is empty.
    """
    applied, parts = active(pipe), Parts(pipe)
    if not prompt.strip():
        raise PerfusionError("explain: a prompt with at least one word is expected, got none.")
    with torch.no_grad():
        encoded = parts.text.encode([prompt])
        read = parts.reads(encoded)
        kinds = {"keys": applied.key_reads(read)[0], "values": read[0]}
    targets = parts.targets
    edits = {"keys": applied.edits[targets.keys[0]], "values": applied.edits[targets.values[0]]}
    # Settings may have been changed since the edits were made: they are read where they are now.
    present = {kind: applied.as_set(edit) for kind, edit in edits.items()}
    # The table shows plain similarities, gates read joint ones: with one concept they are equal.
    similarity = {kind: edits[kind].similarity(x.cpu()) for kind, x in kinds.items()}
    opening = {kind: present[kind].opening(x.cpu()) for kind, x in kinds.items()}
    explanation = Explanation(
        prompt=prompt,
        tokens=parts.text.names(encoded),
        shown=parts.text.token_mask(encoded, "eos")[0],
        triggers=applied.triggers,
        similarity=similarity,
        opening=opening,
        keys=tuple(
            name
            for word, concept in applied.concepts.items()
            for name in vector_names(word, concept.vectors)
        ),
    )
    if show:
        from rich.console import Console

        Console().print(explanation.table())
    return explanation


def _plain(token: str) -> str:
    # Marks of tokenizers: CLIP's end of a word, sentencepiece's and GPT-2's space before one.
    return token.removesuffix("</w>").strip("▁Ġ") or token
