"""The red team: whether a concept is gone, by what is asked for and by teaching it anew."""

from rankedit_recipes.concepts.probing.found import Finding, Probed
from rankedit_recipes.concepts.probing.inversion import TextualInversion
from rankedit_recipes.concepts.probing.judging import Judge
from rankedit_recipes.concepts.probing.prompts import probe
from rankedit_recipes.concepts.probing.relearning import Curve, Learner, Point

__all__ = ["Curve", "Finding", "Judge", "Learner", "Point", "Probed", "TextualInversion", "probe"]
