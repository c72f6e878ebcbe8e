"""Going on with the stream of a folder, by the settings that it has: others are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from torch import nn

from rankedit_recipes.language.editing import Engine, settings_of
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.methods.own import Method
from rankedit_recipes.language.model.layers import Layers, all_blocks, choose_blocks
from rankedit_recipes.language.searching.contexts import checked_prefixes
from rankedit_recipes.language.settings import Settings
from rankedit_recipes.language.statistics import tokenizer_digest
from rankedit_recipes.language.streams.manifest import Manifest


def begun_with(engine: Engine, base: Mapping[str, str]) -> Manifest:
    """What a stream of this engine begins with, and has no facts yet.

    Args:
        engine: model, tokenizer, method and statistics.
        base: by projection, from the lowest, a fingerprint of its weights.
    """
    return Manifest(
        settings=engine.settings,
        solver=engine.settings.solver,
        layers=list(base),
        prefixes=list(engine.prefixes),
        base=dict(base),
        metrics={name: engine.metrics[name].fingerprint for name in base},
        tokenizer=tokenizer_digest(engine.tokenizer),
    )


def settings_to_go_on(manifest: Manifest, path: Path, method: Method | None) -> Settings:
    """The settings of a stream, with the solve of what is passed if it is a method of one's own.

    Args:
        manifest: what the folder holds.
        path: the folder.
        method: as `Stream.open` takes it. A name or a function says only which method it is;
            settings must be those of the stream.

    Raises:
        LanguageError: another method or settings, or a method of one's own that is not passed.
    """
    if method is None:
        if manifest.solver:
            raise LanguageError(
                f"Stream.open: '{path}' is a stream of {manifest.settings.method!r}, and files "
                "hold no code; pass what solves again, as method=, or on the command line as "
                f"--method {manifest.solver}."
            )
        return manifest.settings
    given = settings_of(method)
    if (given.method, given.solver) != (manifest.settings.method, manifest.solver):
        own = f", solved by {manifest.solver}" if manifest.solver else ""
        raise _differs(path, "by the method", manifest.settings.method + own, given.method)
    stored = {**manifest.settings.to_dict(), **manifest.extra}
    # The weight of a soft method depends on how many blocks share it.
    asked = given.shared_by(len(manifest.layers)).to_dict()
    if isinstance(method, Settings) and asked != stored:
        apart = {n for n in asked.keys() | stored.keys() if asked.get(n) != stored.get(n)}
        was, now = ({n: d.get(n) for n in sorted(apart)} for d in (stored, asked))
        raise _differs(path, "with the settings", was, now)
    if lost := set(stored) - {field.name for field in fields(given)}:
        raise _differs(path, "with the settings", sorted(lost), "a class without them")
    # The solve of what was passed, with the numbers of the folder.
    return replace(given, **stored)


def check_places(
    manifest: Manifest, path: Path, model: nn.Module, layers: Layers, prefixes: Sequence[str] | None
) -> None:
    """Refuse other projections and other texts before the prompts than those of the stream.

    Raises:
        LanguageError: says what differs.
    """
    if layers is not None:
        # By the projections that come of it: numbers and names may say the same.
        blocks = choose_blocks(model, all_blocks(model, layers), layers, manifest.settings)
        if [block.down for block in blocks] != manifest.layers:
            raise _differs(path, "in", manifest.layers, [block.down for block in blocks])
    if prefixes is not None and list(checked_prefixes(prefixes)) != manifest.prefixes:
        raise _differs(path, "with the prefixes", manifest.prefixes, list(prefixes))


def _differs(path: Path, what: str, was: object, now: object) -> LanguageError:
    return LanguageError(
        f"Stream.open: '{path}' is a stream of edits {what} {was!s:.200}, got {now!s:.200}; give "
        "the same, or begin a stream in another folder."
    )
