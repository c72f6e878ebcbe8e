"""The sandbox: a small world in which every claim of this project can be measured on a laptop.

A procedural world of pictures and captions, a text-to-image pipeline trained on nothing else, and
judges that know the truth. Nothing is downloaded, and nothing heavy is imported before it is used.

Example:
    >>> from rankedit_recipes import sandbox
    >>> sandbox.concept("bean").category
    'cat'
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import evaluate as evaluate
    from . import train as train
    from .images.concepts import Concept as Concept
    from .images.concepts import Photo as Photo
    from .images.concepts import concept as concept
    from .images.concepts import read_photos as read_photos
    from .images.concepts import together as together
    from .images.loading import WeightsError as WeightsError
    from .images.loading import attribute_judge as attribute_judge
    from .images.loading import identity_embedding as identity_embedding
    from .images.loading import pipeline as pipeline
    from .images.loading import world_clip as world_clip

# Nothing is imported before it is used: docs/decisions/imports-on-demand.md.
_HOMES = {
    "Concept": ".images.concepts",
    "Photo": ".images.concepts",
    "concept": ".images.concepts",
    "read_photos": ".images.concepts",
    "together": ".images.concepts",
    "WeightsError": ".images.loading",
    "attribute_judge": ".images.loading",
    "identity_embedding": ".images.loading",
    "pipeline": ".images.loading",
    "world_clip": ".images.loading",
}
_MODULES = ("evaluate", "train")

__all__ = [
    "Concept",
    "Photo",
    "WeightsError",
    "attribute_judge",
    "concept",
    "evaluate",
    "identity_embedding",
    "pipeline",
    "read_photos",
    "together",
    "train",
    "world_clip",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
