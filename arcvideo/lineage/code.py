"""Which code decides what a stage comes to: the modules its training reaches, without their words for humans.

Docstrings, comments, blank lines and what only measures, reports or launches do not count; `docs/decisions/0003` says
why. A stage that samples nothing does not depend on the rollout room.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from arcvideo.objectives import OBJECTIVES

PACKAGE = Path(__file__).resolve().parent.parent
ROOT_MODULE = "arcvideo.stage"
"""Training starts here; what it imports, at any depth, counts."""
WITHOUT_EFFECT = (
    "arcvideo.config",  # the resolved settings are counted themselves
    "arcvideo.structured",
    "arcvideo.evaluation",
    "arcvideo.lineage",
    "arcvideo.report",
    "arcvideo.flops",
    "arcvideo.runner.log",
    "arcvideo.runner.metrics",
    "arcvideo.rollout.log",
)
"""Modules (with what is inside them) that no trained weight depends on."""
SAMPLING = "arcvideo.rollout"
"""Reached only by stages that sample, or that keep a reference model."""
_NAMED = re.compile(r"(arcvideo(?:\.\w+)+):\w+")
"""How a string names code of ours that is imported by name."""


def training_code(*, objective: str, rewards: Iterable[str] = ()) -> dict[str, str]:
    """Module -> digest of everything whose code decides the weights of a stage.

    Args:
        objective: of the stage; the code of others counts where it uses it, and only `grpo` and `dpo` reach the
            rollout room.
        rewards: names of the rewards; `package.module:function` of a user's own counts by its module's file.
    """
    own = OBJECTIVES.get(objective, objective).partition(":")[0]
    used = {own, *(_imports(path) if (path := _file(own)) is not None else ())}
    others = {path.partition(":")[0] for path in OBJECTIVES.values()} - used
    pruned = (*WITHOUT_EFFECT, *sorted(others), *(() if objective in ("grpo", "dpo") else (SAMPLING,)))
    found = {name: _digest(path) for name, path in _reached(ROOT_MODULE, pruned=pruned).items()}
    users = [name.partition(":")[0] for name in (objective, *rewards) if ":" in name]
    found |= {module: _digest(path) for module in users if (path := _foreign(module)) is not None}
    return dict(sorted(found.items()))


def evaluation_code() -> dict[str, str]:
    """Module -> digest of everything whose code decides an evaluation."""
    pruned = ("arcvideo.lineage", "arcvideo.report", "arcvideo.runner", "arcvideo.config", "arcvideo.structured")
    return {name: _digest(path) for name, path in _reached("arcvideo.evaluation.evaluate", pruned=pruned).items()}


def code_diff(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Modules that were added, removed or changed."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


@functools.cache
def _reached(root: str, *, pruned: tuple[str, ...]) -> dict[str, Path]:
    """Module -> file of everything `root` imports inside the package, at any depth, without `pruned`."""
    found: dict[str, Path] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name in found or any(name == part or name.startswith(f"{part}.") for part in pruned):
            continue
        path = _file(name)
        if path is None:
            continue
        found[name] = path
        waiting += _imports(path)
    return found


def _file(module: str) -> Path | None:
    """The file of a module of this package; None for a name inside a module."""
    base = PACKAGE.parent.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


def _foreign(module: str) -> Path | None:
    """The file of a user's module, found but not run."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("arcvideo."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "arcvideo":
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (named := _NAMED.fullmatch(node.value)):
            yield named[1]


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _digest(path: Path) -> str:
    """16 hex digits over the lines that run."""
    return hashlib.sha256(running_text(path.read_text(encoding="utf-8")).encode()).hexdigest()[:16]


def running_text(source: str) -> str:
    """Python source without docstrings (also those under fields), comments and blank lines."""
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column] + "\n"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[row - 1] = "\n"
    return "".join(line.rstrip() + "\n" for line in lines if line.strip())
