"""Concepts of text-to-image models: erased, replaced and held by one engine of closed-form edits.

edited = concepts.edit(pipe, [concepts.erase("cat"), concepts.hold("tree")], statistics=captions)
with edited.attach(pipe):
    pipe("a photo of a cat")
edited.save("no-cat.safetensors")
"""

from typing import TYPE_CHECKING

from rankedit.lazy import lazy_names

# For type checkers; what is asked for is imported then: docs/decisions/imports-on-demand.md.
if TYPE_CHECKING:
    from rankedit_recipes.concepts.debiasing import Steering, debias
    from rankedit_recipes.concepts.edited import Edited
    from rankedit_recipes.concepts.editing import add, edit, gated
    from rankedit_recipes.concepts.errors import ConceptsError
    from rankedit_recipes.concepts.judging import (
        ClipJudge,
        ClipPresence,
        SandboxJudge,
        SandboxPresence,
    )
    from rankedit_recipes.concepts.methods import METHODS
    from rankedit_recipes.concepts.methods.own import method_of
    from rankedit_recipes.concepts.probing import Probed, TextualInversion, probe
    from rankedit_recipes.concepts.requests import Request, balance, erase, hold, replace
    from rankedit_recipes.concepts.settings import Settings
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "METHODS",
    "ClipJudge",
    "ClipPresence",
    "ConceptsError",
    "Edited",
    "Probed",
    "Request",
    "SandboxJudge",
    "SandboxPresence",
    "Settings",
    "Steering",
    "TextualInversion",
    "add",
    "balance",
    "debias",
    "edit",
    "erase",
    "gated",
    "hold",
    "method_of",
    "probe",
    "replace",
]
