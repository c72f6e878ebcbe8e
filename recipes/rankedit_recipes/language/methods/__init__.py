"""The published methods by name, each a file that says its paper, defaults and deviations.

They are settings of one engine (`editing`), not code of their own; ROME's published fault has a
formula here. `ultraedit`, `rlsedit` and `leace_switch` are functions of one projection, for keys
of one's own. `own` makes a method of a function that somebody else wrote.
"""

from rankedit_recipes.language.methods.alphaedit import ALPHAEDIT
from rankedit_recipes.language.methods.emmet import EMMET
from rankedit_recipes.language.methods.encore import ENCORE
from rankedit_recipes.language.methods.inconsistent import INCONSISTENT
from rankedit_recipes.language.methods.leace_switch import leace_switch
from rankedit_recipes.language.methods.memit import MEMIT
from rankedit_recipes.language.methods.r_rome import R_ROME
from rankedit_recipes.language.methods.rlsedit import RLSEDIT, rlsedit
from rankedit_recipes.language.methods.rome import ROME
from rankedit_recipes.language.methods.ultraedit import Features, ultraedit

METHODS = {
    settings.method: settings
    for settings in (ROME, R_ROME, MEMIT, ENCORE, EMMET, ALPHAEDIT, RLSEDIT)
}

__all__ = [
    "ALPHAEDIT",
    "EMMET",
    "ENCORE",
    "INCONSISTENT",
    "MEMIT",
    "METHODS",
    "RLSEDIT",
    "ROME",
    "R_ROME",
    "Features",
    "leace_switch",
    "rlsedit",
    "ultraedit",
]
