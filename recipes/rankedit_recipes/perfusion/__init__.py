"""Perfusion: teach a text-to-image model a new thing from a few photos of it.

Key-locked rank-one editing (Tewel, Gal, Chechik, Atzmon, SIGGRAPH 2023, arXiv 2305.01644) on
`rankedit`'s gated edits, for diffusers pipelines with cross-attention on their text.

    bean = perfusion.learn(pipe, "photos/", placeholder="<bean>", category="cat",
                           statistics=captions)
    bean.save("bean.safetensors")
    with perfusion.apply(pipe, [bean, "mug.safetensors"], bias=0.6):
        pipe("a photo of a <bean> next to a <mug>")
"""

from typing import TYPE_CHECKING

from rankedit.lazy import lazy_names

# For type checkers; what is asked for is imported then: docs/decisions/imports-on-demand.md.
if TYPE_CHECKING:
    from rankedit_recipes.diffusion.captions import make_captions
    from rankedit_recipes.diffusion.generating import Sampling, generate
    from rankedit_recipes.diffusion.parts import find_targets
    from rankedit_recipes.diffusion.scoring import ClipScorer, Scorer, Scores
    from rankedit_recipes.diffusion.statistics import metric_of, read_captions, second_moment
    from rankedit_recipes.diffusion.targets import Targets
    from rankedit_recipes.perfusion.applying.applied import Applied
    from rankedit_recipes.perfusion.applying.apply import (
        active,
        apply,
        load,
        set_concepts,
        unload,
    )
    from rankedit_recipes.perfusion.applying.explaining import Explanation, explain
    from rankedit_recipes.perfusion.applying.exporting import export_embedding, export_lora
    from rankedit_recipes.perfusion.concept import Concept
    from rankedit_recipes.perfusion.errors import PerfusionError
    from rankedit_recipes.perfusion.joint.applying import AppliedJoint, apply_joint
    from rankedit_recipes.perfusion.joint.concept import JointConcept
    from rankedit_recipes.perfusion.joint.config import JointConfig
    from rankedit_recipes.perfusion.joint.learning import learn_joint
    from rankedit_recipes.perfusion.learning.config import Config
    from rankedit_recipes.perfusion.learning.masks import ClipSegMasks, masked
    from rankedit_recipes.perfusion.learning.photos import Photo, load_photos
    from rankedit_recipes.perfusion.learning.training import learn
    from rankedit_recipes.perfusion.learning.validation import Validation
    from rankedit_recipes.perfusion.locks import PRESETS
    from rankedit_recipes.perfusion.prompts import CONTEXTS, TEMPLATES
    from rankedit_recipes.perfusion.showing.reporting import Report
    from rankedit_recipes.perfusion.showing.sweeping import Point, pareto_front, sweep
    from rankedit_recipes.perfusion.teaching import Teacher
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CONTEXTS",
    "PRESETS",
    "TEMPLATES",
    "Applied",
    "AppliedJoint",
    "ClipScorer",
    "ClipSegMasks",
    "Concept",
    "Config",
    "Explanation",
    "JointConcept",
    "JointConfig",
    "PerfusionError",
    "Photo",
    "Point",
    "Report",
    "Sampling",
    "Scorer",
    "Scores",
    "Targets",
    "Teacher",
    "Validation",
    "active",
    "apply",
    "apply_joint",
    "explain",
    "export_embedding",
    "export_lora",
    "find_targets",
    "generate",
    "learn",
    "learn_joint",
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
