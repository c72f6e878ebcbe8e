"""The command `rankedit concepts`: erase and replace concepts, look at an edit, take parts back.

Commands import what needs torch inside themselves: help and refusals are to come at once.
"""

from __future__ import annotations

from rankedit_recipes.command_line.boundary import application
from rankedit_recipes.concepts.commands.debias import debias
from rankedit_recipes.concepts.commands.keep import export, list_, undo
from rankedit_recipes.concepts.commands.make import erase, replace
from rankedit_recipes.concepts.commands.remedies import REMEDIES
from rankedit_recipes.concepts.commands.show import evaluate, probe

app = application("Erase, replace, hold and debias concepts of a text-to-image model.", REMEDIES)
# In the order of use, in which help lists them.
app.command()(erase)
app.command()(replace)
app.command()(debias)
app.command()(evaluate)
app.command()(probe)
app.command("list")(list_)
app.command()(undo)
app.command()(export)
