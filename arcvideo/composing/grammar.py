"""Hydra's grammar of overrides: what a word says, and how a value is written."""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException


def parsed(word: str) -> Override:
    """Return an override as Hydra reads it.

    Raises:
        ValueError: it cannot be read; the message is one line.
    """
    try:
        override = OverridesParser.create().parse_override(word)
    except RecursionError:
        raise ValueError("too many brackets in each other") from None
    except HydraException as error:
        raise ValueError(next(iter(str(error).splitlines()), "no reason is given")[:200]) from None
    if isinstance(override.value(), RangeSweep) and not _has_values(override):
        raise ValueError("this range has no values")
    return override


def _has_values(swept: Override) -> bool:
    try:
        return next(swept.sweep_string_iterator(), None) is not None
    except (ValueError, ArithmeticError):  # a step of nothing, an end that is no number
        return False


def is_readable(word: str) -> bool:
    """Return whether Hydra can read an override."""
    try:
        parsed(word)
    except ValueError:
        return False
    return True


def quoted(text: str) -> str:
    """Return a text as Hydra's grammar takes any text."""
    return "'" + re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'") + "'"


def words_of(settings: dict[str, Any], *, prefix: str = "") -> list[str]:
    """Return nested settings as words, `{"runner": {"steps": 5}}` as `runner.steps=5`; keys with `~` delete."""
    words: list[str] = []
    for key, value in settings.items():
        name = f"~{prefix}{key[1:]}" if key.startswith("~") else f"{prefix}{key}"
        if key.startswith("~") and value is None:
            words.append(name)
        elif isinstance(value, dict) and value and all(re.fullmatch(r"~?[\w./-]+", str(inner)) for inner in value):
            words += words_of({str(inner): entry for inner, entry in value.items()}, prefix=f"{name}.")
        else:
            words.append(f"{name}={_written(value)}")
    return sorted(words, key=lambda word: not word.startswith("~"))  # what is taken out makes room for what comes


def _written(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        entries = [f"{_escaped(str(key))}:{_written(entry)}" for key, entry in value.items()]
        return "{" + ",".join(entries) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_written(entry) for entry in value)}]"
    if not isinstance(value, str):
        return repr(value)
    try:
        plain = parsed(f"x={value}").value() == value and not set(",[](){}'\"") & set(value)
    except ValueError:
        plain = False
    return value if plain and value else quoted(value)


def _escaped(key: str) -> str:
    """Return a key of a mapping in Hydra's grammar, which has no quotes for keys."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", key)


# --- the settings there are ---
