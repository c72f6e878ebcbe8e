"""The command `rankedit perfusion`: learn a concept, use it, look into it, take it elsewhere.

Commands import what needs torch inside themselves: help and refusals are to come at once.
"""

from __future__ import annotations

from rankedit_recipes.command_line.boundary import application
from rankedit_recipes.perfusion.commands.keep import export, info, rename
from rankedit_recipes.perfusion.commands.learn import learn
from rankedit_recipes.perfusion.commands.many import learn_many
from rankedit_recipes.perfusion.commands.remedies import REMEDIES
from rankedit_recipes.perfusion.commands.stats import stats
from rankedit_recipes.perfusion.commands.use import evaluate, explain, generate, sweep

app = application(
    "Teach a text-to-image model a new thing from a few photos (Perfusion).", REMEDIES
)
# In the order of use, in which help lists them.
for _command in (stats, learn, generate, explain, sweep, evaluate, export, rename, info):
    app.command()(_command)
app.command("learn-many")(learn_many)
