"""Things of other packages by name: `package.module:name`, or the name of an entry point of an installed package.

A package tells what it brings in its `pyproject.toml`, for example
`[project.entry-points."arcvideo.rewards"]` with `colour = "own_project.rewards:colour"`. What is asked here before a
run starts is read from source files; nothing of theirs is run before `load`.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Collection, Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from arcvideo.structured import nearest

KINDS = ("rewards", "tasks", "samplers", "objectives", "loggers", "callbacks", "metrics", "benchmarks", "conf")
"""What a package can bring, each under `arcvideo.KIND`; `conf` is a package of YAML files laid out like conf/."""
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@functools.cache
def brought(kind: str) -> dict[str, str]:
    """Return name -> `package.module:name` of what installed packages bring of a kind, sorted by name."""
    assert kind in KINDS, kind
    paths = {entry.name: entry.value.replace(" ", "") for entry in entry_points(group=f"arcvideo.{kind}")}
    return dict(sorted(paths.items()))


def path_of(name: str, *, kind: str) -> str:
    """Return the `package.module:name` behind a name; empty when it is neither that nor brought by any package."""
    return name if _PATH.fullmatch(name) else brought(kind).get(name, "")


def load(name: str, *, kind: str, key: str) -> Any:
    """Return the object behind a name.

    Args:
        name: `package.module:name`, or of an entry point.
        kind: of `KINDS`.
        key: the setting that has the name, for messages.

    Raises:
        ValueError: it cannot be imported; the message names key and reason.
    """
    return imported(path_of(name, kind=kind), what=f"{key}: {name!r}")


def imported(path: str, *, what: str) -> Any:
    """Return the object at `package.module:name`.

    Args:
        path: where it is.
        what: setting and value that name it, for the message.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, attribute = path.partition(":")
    try:
        _from_working_directory(module.partition(".")[0])
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} cannot be imported: {error}") from error


def failure(error: BaseException, *, files: Collection[str]) -> str:
    """Return in one line what code of somebody else raised, with its place in the files given.

    Args:
        error: as it was raised.
        files: paths of that code; the innermost line of theirs is named.
    """
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    place = f"{Path(lines[-1].filename).name}:{lines[-1].lineno}: " if lines else ""
    first = next(iter(str(error).splitlines()), "")
    return f"{place}{type(error).__name__}{': ' if first else ''}{first}"


def problem(name: str, *, kind: str, key: str) -> str:
    """Return what keeps `load` from finding a name, as far as source files show; empty when nothing does."""
    path = path_of(name, kind=kind)
    if not path:
        return f"{key}: {name!r} is no package.module:name{nearest(name, list(brought(kind)))}"
    module, _, attribute = path.partition(":")
    spec = find_module(module)
    if spec is None:
        return (
            f"{key}: {name!r} cannot be imported: no module named {module!r}; it must lie in the working directory, on "
            "PYTHONPATH, or in an installed package"
        )
    source = spec.origin
    if not source or not source.endswith(".py"):
        return ""  # compiled, or a package without a file: only importing it would tell
    try:
        names = _names(Path(source))
    except (SyntaxError, ValueError) as error:
        return f"{key}: {name!r} cannot be imported: {error}"
    if names is None or attribute in names or find_module(f"{module}.{attribute}") is not None:
        return ""
    return f"{key}: {name!r} cannot be imported: {source} has no {attribute!r}{nearest(attribute, sorted(names))}"


def source_file(module: str) -> Path | None:
    """Return the file of a module without running any of its code, nor that of the packages around it."""
    spec = find_module(module)
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


def find_module(module: str) -> ModuleSpec | None:
    """Return what the import system would load, as `importlib.util.find_spec`, which imports packages on the way."""
    spec: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        folders = spec.submodule_search_locations if spec is not None else None
        if spec is not None and folders is None:
            return None  # a module has no modules inside
        spec = _spec(name, folders=None if folders is None else list(folders))
        if spec is None:
            return None
    return spec


def conf_folders() -> list[Path]:
    """Return the folders of options that installed packages bring."""
    folders = []
    for value in brought("conf").values():
        spec = find_module(value.partition(":")[0])
        folders += [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    return folders


def loaded(kind: str) -> Iterator[tuple[str, Any]]:
    """Yield name and object of everything that packages bring of a kind; what cannot be loaded is told on stderr."""
    for name in brought(kind):
        try:
            yield name, load(name, kind=kind, key=f"entry point arcvideo.{kind}")
        except Exception as error:
            print(f"a package's {kind} are left out: {type(error).__name__}: {error}", file=sys.stderr)


def _from_working_directory(name: str) -> None:
    """Let a module that was named be imported from the working directory, where nothing else has it.

    That folder is on no path of a command's before, and behind everything then: what lies there takes nobody's place.
    """
    place = os.getcwd()
    if place not in sys.path and _installed(name) is None and _spec(name, folders=[place]) is not None:
        sys.path.append(place)


def _installed(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _spec(name: str, *, folders: list[str] | None) -> ModuleSpec | None:
    if folders is None:
        return _installed(name) or _spec(name, folders=[os.getcwd()])
    finders = [finder for folder in folders if (finder := pkgutil.get_importer(folder)) is not None]
    specs = [spec for finder in finders if (spec := finder.find_spec(name)) is not None]
    return next((spec for spec in specs if spec.loader is not None), specs[0] if specs else None)


def _names(path: Path) -> set[str] | None:
    """Return the names that a module's file defines at its top level; None when it may define any."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue  # what stands inside is not the module's
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return None if names & {"*", "__getattr__"} else names
