"""Facts in causal language models, edited in closed form: ROME, r-ROME, MEMIT, EMMET, AlphaEdit.

One engine on `rankedit`'s one solver; the methods are settings of it. A method of one's own is a
function that solves in that solver's place.

    statistics = language.collect_statistics(model, tokenizer, "texts/")
    edited = language.edit(model, tokenizer, requests, method="memit", statistics=statistics)
    with edited.attach(model):
        ...
    edited.save("facts.safetensors", model=model)
"""

from typing import TYPE_CHECKING

from rankedit.lazy import lazy_names

# For type checkers; what is asked for is imported then: docs/decisions/imports-on-demand.md.
if TYPE_CHECKING:
    from rankedit_recipes.language.editing import edit
    from rankedit_recipes.language.errors import LanguageError
    from rankedit_recipes.language.evaluating.evaluation import evaluate, evaluate_each
    from rankedit_recipes.language.evaluating.generating import generate, generation_entropy
    from rankedit_recipes.language.evaluating.likelihoods import Likelihoods, likelihoods
    from rankedit_recipes.language.evaluating.locality import Unrelated
    from rankedit_recipes.language.evaluating.locating import locate
    from rankedit_recipes.language.evaluating.measures import MEASURES, Measure
    from rankedit_recipes.language.evaluating.references import read_references
    from rankedit_recipes.language.evaluating.rewriting import without_rewritten
    from rankedit_recipes.language.evaluating.scores import Scores
    from rankedit_recipes.language.evaluating.tracing import Trace, parts_of, trace
    from rankedit_recipes.language.methods import METHODS
    from rankedit_recipes.language.methods.own import method_of
    from rankedit_recipes.language.model.bases import check_base
    from rankedit_recipes.language.model.blocks import Block, find_blocks
    from rankedit_recipes.language.reading import case_of, read_cases, read_requests
    from rankedit_recipes.language.requests import Case, Request, continued
    from rankedit_recipes.language.searching.contexts import prefixes_from, sample_prefixes
    from rankedit_recipes.language.searching.edited import Edited
    from rankedit_recipes.language.settings import Settings
    from rankedit_recipes.language.showing.reporting import Report
    from rankedit_recipes.language.statistics import Statistics, collect_statistics, load_statistics
    from rankedit_recipes.language.streams.conflicts import FactConflict
    from rankedit_recipes.language.streams.stream import Stream
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "MEASURES",
    "METHODS",
    "Block",
    "Case",
    "Edited",
    "FactConflict",
    "LanguageError",
    "Likelihoods",
    "Measure",
    "Report",
    "Request",
    "Scores",
    "Settings",
    "Statistics",
    "Stream",
    "Trace",
    "Unrelated",
    "case_of",
    "check_base",
    "collect_statistics",
    "continued",
    "edit",
    "evaluate",
    "evaluate_each",
    "find_blocks",
    "generate",
    "generation_entropy",
    "likelihoods",
    "load_statistics",
    "locate",
    "method_of",
    "parts_of",
    "prefixes_from",
    "read_cases",
    "read_references",
    "read_requests",
    "sample_prefixes",
    "trace",
    "without_rewritten",
]
