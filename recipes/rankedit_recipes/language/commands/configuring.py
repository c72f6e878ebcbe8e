"""Settings of a method as a TOML file, and changes of single ones from the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from rankedit_recipes.command_line.pairs import parsed_pairs
from rankedit_recipes.language.editing import settings_of
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.settings import Settings


def chosen_settings(method: str, config: Path | None, pairs: Sequence[str]) -> Settings:
    """Settings as they were asked for: a method's or a file's, with single ones changed.

    Raises:
        LanguageError: the method and the file contradict each other, or there is no such setting.
    """
    settings = settings_of(method or "memit") if config is None else from_toml(config)
    # Neither wins in silence.
    if config is not None and method and settings_of(method).method != settings.method:
        raise LanguageError(
            f"edit: --method {method} and the method {settings.method} of '{config}' differ; give "
            "one of them."
        )
    return from_pairs(settings, pairs)


def to_toml(settings: Settings) -> str:
    """Settings as a TOML file that `from_toml` reads; what is None is left out."""
    lines = []
    # `to_dict` leaves out what nobody asked for; here every setting is to be seen.
    for name, value in {**settings.to_dict(), "chat": settings.chat}.items():
        # TOML has no word for None.
        if value is not None:
            shown = list(value) if isinstance(value, tuple) else value
            lines.append(f"{name} = {json.dumps(shown, ensure_ascii=False)}\n")
    return "".join(lines)


def from_toml(path: str | PathLike[str], method: str | None = None) -> Settings:
    """Read a TOML file; what it leaves out is as the method has it.

    Args:
        path: the file.
        method: that the file changes; the one it names itself if None.

    Raises:
        LanguageError: no such file, not TOML, an unknown method, or a setting that is unknown or
            of another type.
    """
    file = Path(path)
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LanguageError(f"from_toml: '{file}' cannot be read: {error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LanguageError(f"from_toml: '{file}' is no TOML file: {error}.") from error
    named = found.pop("method", None)
    if method is None and not isinstance(named, str):
        raise LanguageError(f"from_toml: '{file}' must name a method, such as method = \"memit\".")
    return changed(settings_of(method or str(named)), found)


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Settings with other values, checked.

    Raises:
        LanguageError: an unknown setting, or one of another type or out of range.
    """
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    new: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise LanguageError(
                f"Settings: unknown setting {name!r}; known are {', '.join(known)}."
            )
        new[name] = _typed(name, value, known[name])
    return replace(settings, **new)


def from_pairs(settings: Settings, pairs: Sequence[str]) -> Settings:
    """Settings changed by texts such as `"steps=40"`.

    Raises:
        LanguageError: a text without `=`, and what `changed` refuses.
    """
    return changed(settings, parsed_pairs(pairs, "language", LanguageError))


_CHOICES: Mapping[str, type] = {"space": bool}


def _typed(name: str, value: object, like: object) -> object:
    if isinstance(like, tuple) and isinstance(value, (list, tuple)):
        # By exact type, for to `isinstance` True is a whole number.
        if all(type(item) is int for item in value):
            return tuple(value)
        raise LanguageError(f"Settings: {name} must be a list of whole numbers, got {value!r}.")
    # What is None by default is a number that the method leaves open, or a choice.
    kind = _CHOICES.get(name, float) if like is None else type(like)
    # JSON and TOML have 1 where 1.0 is meant.
    if kind is float and type(value) is int:
        return float(value)
    if like is None and value is None:
        return None
    if type(value) is not kind:
        raise LanguageError(f"Settings: {name} must be of type {kind.__name__}, got {value!r}.")
    return value
