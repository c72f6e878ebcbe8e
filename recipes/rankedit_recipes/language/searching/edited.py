"""What an edit came to: the edits, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import torch
from torch import nn

import rankedit as rk
from rankedit_recipes.language.model.bases import base_marks
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.searching.values import FoundValues
from rankedit_recipes.language.settings import Settings


@dataclass(frozen=True)
class Edited:
    """The edits of a model, and how they came about.

    Attributes:
        edits: by projection; for `rankedit.attach`, `fuse_`, `save` and `to_lora`.
        facts: keys and values of each request.
        found: how the search for values went.
        settings: the method.
    """

    edits: dict[str, rk.LowRank]
    facts: Facts
    found: FoundValues
    settings: Settings

    def attach(self, model: nn.Module, *, strength: float = 1.0) -> rk.Attachment:
        """Put the edits into the model; see `rankedit.attach`."""
        return rk.attach(model, self.edits, strength=strength)

    def save(
        self,
        path: str | PathLike[str],
        *,
        model: nn.Module | None = None,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        """Write the edits to one file, which `rankedit.load` reads.

        Each fact takes `(in + out)` numbers for each projection: 1.3 KB in a model of width 128.

        Args:
            path: the file.
            model: the model, if the file is to know which one it is for.
            dtype: how to store them; half precision has a relative error of 3e-4.
        """
        texts = {"language": self.settings.method, "facts": str(len(self.facts))}
        if model is not None:
            texts |= base_marks(model, self.edits)
        # Half precision would lose what is very small in one factor and very large in the other.
        balanced = {name: edit.balanced() for name, edit in self.edits.items()}
        rk.save(balanced, path, metadata=texts, model=model, dtype=dtype)
