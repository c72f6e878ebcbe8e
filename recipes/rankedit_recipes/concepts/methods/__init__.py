"""The methods by name, each a file that says its paper, defaults and deviations.

They are settings of one engine (`solving`), not code of their own. `own` makes a method of a
function that somebody else wrote.
"""

from rankedit_recipes.concepts.methods.covariance import COVARIANCE
from rankedit_recipes.concepts.methods.rece import RECE
from rankedit_recipes.concepts.methods.speed import SPEED
from rankedit_recipes.concepts.methods.time import TIME
from rankedit_recipes.concepts.methods.uce import UCE

METHODS = {settings.method: settings for settings in (COVARIANCE, UCE, TIME, RECE, SPEED)}

__all__ = ["COVARIANCE", "METHODS", "RECE", "SPEED", "TIME", "UCE"]
