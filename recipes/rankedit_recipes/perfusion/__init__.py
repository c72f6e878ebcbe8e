"""Perfusion: teach a text-to-image model a new thing from a few photos of it.

Key-locked rank-one editing (Tewel, Gal, Chechik, Atzmon, SIGGRAPH 2023, arXiv 2305.01644) on
`rankedit`'s gated edits, for diffusers pipelines with cross-attention on their text.

    bean = perfusion.learn(pipe, "photos/", placeholder="<bean>", category="cat",
                           statistics=captions)
    bean.save("bean.safetensors")
    with perfusion.apply(pipe, [bean, "mug.safetensors"], bias=0.6):
        pipe("a photo of a <bean> next to a <mug>")
"""

from rankedit_recipes.perfusion.applied import Applied
from rankedit_recipes.perfusion.applying import (
    active,
    apply,
    load,
    set_concepts,
    unload,
)
from rankedit_recipes.perfusion.captions import make_captions
from rankedit_recipes.perfusion.concept import PRESETS, Concept
from rankedit_recipes.perfusion.config import Config
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.explaining import Explanation, explain
from rankedit_recipes.perfusion.exporting import export_embedding, export_lora
from rankedit_recipes.perfusion.generating import Sampling, generate
from rankedit_recipes.perfusion.masks import ClipSegMasks, masked
from rankedit_recipes.perfusion.photos import Photo, load_photos
from rankedit_recipes.perfusion.prompts import CONTEXTS, TEMPLATES
from rankedit_recipes.perfusion.reporting import Report
from rankedit_recipes.perfusion.scoring import ClipScorer, Scorer, Scores, Validation
from rankedit_recipes.perfusion.statistics import metric_of, read_captions, second_moment
from rankedit_recipes.perfusion.sweeping import Point, pareto_front, sweep
from rankedit_recipes.perfusion.targets import Targets, find_targets
from rankedit_recipes.perfusion.training import learn

__all__ = [
    "CONTEXTS",
    "PRESETS",
    "TEMPLATES",
    "Applied",
    "ClipScorer",
    "ClipSegMasks",
    "Concept",
    "Config",
    "Explanation",
    "PerfusionError",
    "Photo",
    "Point",
    "Report",
    "Sampling",
    "Scorer",
    "Scores",
    "Targets",
    "Validation",
    "active",
    "apply",
    "explain",
    "export_embedding",
    "export_lora",
    "find_targets",
    "generate",
    "learn",
    "load",
    "load_photos",
    "make_captions",
    "masked",
    "metric_of",
    "pareto_front",
    "read_captions",
    "second_moment",
    "set_concepts",
    "sweep",
    "unload",
]
