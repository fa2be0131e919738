"""Every setting with its type, default and meaning, as Markdown: `arcvideo settings`.

Read from the dataclasses and the line of documentation under each field, so it cannot be out of date. The documentation
site makes its page of settings from this.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from arcvideo.composing.config import RunConfig
from arcvideo.composing.recipe import Recipe
from arcvideo.places import CONF_DIR
from arcvideo.processes.command import as_command
from arcvideo.structured import documented


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the reference."""

    key: str
    """Dotted name; `NAME` stands for a name of the user's own."""
    kind: str
    """Its type, as it is written in the code."""
    default: str
    """Empty where a value must be given."""
    meaning: str
    """The documentation under the field."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """The settings of one dataclass."""

    key: str
    """Where they stand, empty for the top."""
    about: str
    """First line of the dataclass's docstring."""
    settings: list[Setting]


def sections(kind: Any = RunConfig, *, prefix: str = "") -> Iterator[Section]:
    """Yield a dataclass and those inside it, outermost first."""
    hints = typing.get_type_hints(kind)
    meanings = documented(kind)
    inner: list[tuple[Any, str]] = []
    rows = []
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        rows.append(Setting(key=key, kind=_kind(hint), default=_default(field), meaning=meanings.get(field.name, "")))
        ends = {dict: ".NAME.", list: "[]."}
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                inner.append((part, key + ends.get(typing.get_origin(hint), ".")))
    about = (kind.__doc__ or "").strip().splitlines()[0]
    yield Section(key=prefix.rstrip("."), about=about, settings=rows)
    for hint, deeper in inner:
        yield from sections(hint, prefix=deeper)


def markdown() -> str:
    """Return the page of settings."""
    parts = [
        "# Settings",
        "Every setting of `arcvideo.train`: `key=value` on its command line, on a stage line of a recipe, or in YAML. "
        "Made from the code (`arcvideo settings`). `NAME` stands for a name of your own. "
        "`python -m arcvideo.train stage=sft --cfg job` shows the values of a stage.",
        "## Groups",
        "Files of ready-made values; `group=option` chooses one.",
        _groups(),
    ]
    for section in sections():
        parts += [f"## {section.key or 'Top level'}", section.about, _table(section.settings)]
    parts += ["## Recipes", "The keys of a file in `recipes/`."]
    for section in sections(Recipe):
        heading = [f"### {section.key}"] if section.key else []
        parts += [*heading, section.about, _table(section.settings)]
    return "\n\n".join(parts) + "\n"


def _groups() -> str:
    rows = ["| group | options |", "|---|---|"]
    for folder in sorted(path for path in CONF_DIR.rglob("*") if path.is_dir()):
        options = [f"`{name}`" for name in sorted(path.stem for path in folder.glob("[!_]*.yaml"))]
        if options:
            rows.append(f"| `{folder.relative_to(CONF_DIR).as_posix()}` | {', '.join(options)} |")
    return "\n".join(rows)


def _table(settings: list[Setting]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        default = f"`{_cell(setting.default)}`" if setting.default else ""
        rows.append(f"| `{setting.key}` | {_cell(setting.kind)} | {default} | {_cell(setting.meaning)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


def _kind(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return "settings"
    if any(dataclasses.is_dataclass(argument) for argument in arguments):
        said = {dict: "settings of each NAME", list: "list of settings"}.get(typing.get_origin(hint), "settings")
        return f"{said} | None" if type(None) in arguments else said
    text = hint.__name__ if isinstance(hint, type) and not arguments else str(hint)
    return text.replace("typing.", "")


def _default(field: dataclasses.Field[Any]) -> str:
    """As it would be written in YAML; empty where there is none, or where it is a settings of its own."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ""
    if dataclasses.is_dataclass(value):
        return ""
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


def main() -> None:
    """Print the page."""
    print(markdown(), end="")


if __name__ == "__main__":
    as_command(main)
