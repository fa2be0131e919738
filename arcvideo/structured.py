"""Filling settings dataclasses from plain values: types are checked and unknown keys refused, with the full key named.

OmegaConf's own structured configurations make frozen dataclasses read-only before they can be filled.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

Kind = TypeVar("Kind")


COLON = r"in braces a name with a colon is written with a backslash: {my_module\:my_function: 1}"
"""What those need to know whose mapping was read otherwise than they meant."""


class SettingsError(ValueError):
    """Values that do not fit; the message names the full key and the remedy."""


def filled(kind: type[Kind], values: Mapping[str, Any], *, key: str = "") -> Kind:
    """Return the dataclass `kind` with `values` over its defaults.

    Args:
        key: where `values` stand, for messages.

    Raises:
        SettingsError: an unknown key, a wrong type, a missing value, or what the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        first = dataclasses.fields(kind)[0].name  # type: ignore[arg-type]
        raise SettingsError(
            f"{key}: expected a group of settings, got {values!r}; give them one by one, {key}.{first}=..."
        )
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise SettingsError(f"{_join(key, name)}: no such setting{nearest(str(name), list(fields))}")
    checked = {name: _value(hints[name], value, key=_join(key, name)) for name, value in values.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in checked:
            raise SettingsError(f"{_join(key, name)}: must be set")
    try:
        return kind(**checked)
    except SettingsError:
        raise
    except ValueError as error:
        named = re.match(r"\w+", str(error))  # a dataclass knows its fields, not where it stands
        inside = key and named is not None and named[0] in fields
        raise SettingsError(_join(key, str(error)) if inside else str(error)) from None


def from_words(kind: type[Kind], words: Sequence[str], *, example: str) -> Kind:
    """Return the dataclass of `key=value` words; `key.name=value` is an entry of a mapping, commas separate a list.

    Args:
        example: a word as it should be, for messages.

    Raises:
        SettingsError: a word that is no setting, or a value that does not fit.
    """
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for word in words:
        path, equals, value = word.partition("=")
        key, dot, name = path.partition(".")
        if not equals:
            raise SettingsError(f"{word!r}: expected key=value, like {example}")
        mapping = typing.get_origin(hints.get(key)) is dict
        if key not in hints or mapping != bool(dot):
            shape = f": give its entries, like {key}.NAME={value}" if key in hints and mapping else ""
            raise SettingsError(f"{path}: no such setting{shape or nearest(key, list(hints))}")
        if mapping:
            values.setdefault(key, {})[name] = _typed(value, typing.get_args(hints[key])[1])
        else:
            values[key] = _typed(value, hints[key])
    return filled(kind, values)


def words_help(kind: type) -> str:
    """Return each setting with its default and what it means, for a terminal of 80 columns or more."""
    meanings, lines = documented(kind), []
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        shown = ",".join(map(str, default)) if isinstance(default, list) else default
        unset = default is dataclasses.MISSING or shown in ("", {})
        head = f"  {field.name + '=':20}{'' if unset else shown}".rstrip()
        said = textwrap.wrap(
            meanings.get(field.name, ""), width=76, initial_indent="      ", subsequent_indent="      "
        )
        lines += [head, *said]
    return "\n".join(lines)


@cache
def documented(kind: Any) -> dict[str, str]:
    """Field -> the string under it in the source of a dataclass."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for entry, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                texts[entry.target.id] = " ".join(text.value.split())
    return texts


def _typed(value: str, kind: Any) -> Any:
    """Return a word's value as the type it should have; `filled` refuses what does not fit."""
    if typing.get_origin(kind) is list:
        value = value[1:-1] if value.startswith("[") and value.endswith("]") else value  # as Hydra's lists are written
        return [_typed(part.strip(), typing.get_args(kind)[0]) for part in value.split(",") if part.strip()]
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    return int(value) if kind is int and value.lstrip("-").isdigit() else value


def nearest(word: str, words: list[str]) -> str:
    """Return a question after the closest of `words`, ` (did you mean 'x'?)`, or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _value(kind: Any, value: Any, *, key: str) -> Any:
    """`value` as the annotated type; integers are accepted for floats, and numbers written like 1e-5."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _value(inner, value, key=key)
    if dataclasses.is_dataclass(kind):
        return filled(kind, value, key=key)  # type: ignore[arg-type]
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise SettingsError(f"{key}: expected a list like [a, b], got {value!r}")
        return [_value(arguments[0], item, key=f"{key}[{number}]") for number, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SettingsError(f"{key}: expected a mapping like {{a: 1}}, got {value!r}")
        return {str(name): _value(arguments[1], item, key=_join(key, name)) for name, item in value.items()}
    return _plain(kind, value, key=key)


def _plain(kind: type, value: Any, *, key: str) -> Any:
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):  # a word, or a number of hundreds of digits
            pass
    elif kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    elif type(value) is kind:
        return value
    raise SettingsError(f"{key}: expected {wanted}, got {value!r}{_remedy(kind, value, key=key)}")


def _remedy(kind: type, value: Any, *, key: str) -> str:
    if isinstance(value, str) and ": " in value:
        return f"; {COLON}"
    if kind is str and isinstance(value, (list, tuple)) and value and all(isinstance(part, str) for part in value):
        if key.rpartition(".")[2] != "shards":
            return "; it takes one text, no list"
        shown = f"{{{','.join(value)}}}" if len(value) > 1 else value[0]
        return f"; several shards are one text: {key}='{shown}'"
    return ""


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
