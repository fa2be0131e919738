"""Which code decides what a stage comes to: modules of the deciding rooms that its training reaches by import.

Docstrings, comments, blank lines and what only measures, reports, saves or launches do not count; `docs/decisions/0003`
says why. A stage that samples nothing does not depend on the rooms of sampling.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from arcvideo.named import brought, path_of, source_file
from arcvideo.objectives import OBJECTIVES, objective_row

PACKAGE = Path(__file__).resolve().parent.parent
TRAINING = "arcvideo.stage"
"""Training starts here; what it imports, at any depth, is reached."""
EVALUATION = "arcvideo.validation.asking"
DECIDING = (
    "types",
    "layout",
    "media",
    "decoding",
    "render",
    "shards",
    "planning",
    "feed",
    "tasks",
    "model",
    "objectives",
    "processes",
    "saving",
    "runner",
    "sampling",
    "rollout",
    "stage",
)
"""Rooms whose modules decide weights; a new module in one of them counts, a new room has to be added here."""
BYSTANDERS = {
    "model": ("disk.card", "disk.carried"),  # what lies beside the weights of an export
    "shards": ("locks", "write"),  # locking, writing shards: what is read counts by its digest
    "rollout": ("log", "timeline"),
    # A checkpoint gives back what was saved bit for bit; the rest watches, counts, logs, or stops a run.
    "runner": ("facts", "liveness", "protocols", "resuming", "saving"),
    "saving": ("checkpoint",),
    "processes": ("children", "launcher", "signals", "terminal", "watchdog"),
}  # fmt: skip
"""Room -> modules inside it that no trained weight depends on."""
MEASURING = (
    "types", "layout", "render", "feed", "tasks", "model", "objectives", "sampling", "rollout", "evaluation",
    "validation",
)  # fmt: skip
"""Rooms whose modules decide what an evaluation says of given weights."""
SAMPLING = ("sampling", "rollout")
"""Count for stages that sample, or that keep a reference model."""
_NAMED = re.compile(r"(arcvideo(?:\.\w+)+)(?::\w+)?")
"""How a string names code of ours that is imported by name or run in a process of its own."""


def training_code(*, objective: str, feed: str = "", rewards: Iterable[str] = (), sampler: str = "") -> dict[str, str]:
    """Return module -> digest of everything whose code decides the weights of a stage.

    Args:
        objective: of the stage; the code of others counts where it uses it. Only those that do not train on the data's
            own answers reach the rooms of sampling.
        feed: `stage.feed`, what a class of the user's own trains on.
        rewards: names of the rewards; those of other packages count by their module's file, like the tasks they bring.
        sampler: `grpo.sampler`, likewise.
    """
    row = objective_row(objective, feed=feed)
    own = row.loss.partition(":")[0]
    path = _file(own) or source_file(own)
    used = {own, *(_imports(path) if path is not None else ())}
    # What makes the batches of a user's own class uses the formulas of our objective with that feed.
    used |= {entry.loss.partition(":")[0] for entry in OBJECTIVES.values() if entry.feed == row.feed}
    others = {entry.loss.partition(":")[0] for entry in OBJECTIVES.values()} - used
    rooms = tuple(room for room in DECIDING if room not in SAMPLING or row.feed != "answers")
    modules = _reached(TRAINING, rooms=rooms, pruned=tuple(sorted(others)))
    digests = {name: _digest(path) for name, path in modules.items()}
    named = [
        path_of(objective, kind="objectives"),
        *(path_of(name.partition("(")[0], kind="rewards") for name in rewards),
    ]
    users = [
        path.partition(":")[0]
        for path in (*named, path_of(sampler, kind="samplers"), *brought("tasks").values())
        if path
    ]
    return dict(sorted((digests | _digests_of(users)).items()))


def evaluation_code(*, metrics: Iterable[str] = ()) -> dict[str, str]:
    """Return module -> digest of everything whose code decides an evaluation.

    Args:
        metrics: names of its figures; those of other packages count by their module's file, like the tasks they bring.
            Without them it is what decides the answers.
    """
    digests = {name: _digest(path) for name, path in _reached(EVALUATION, rooms=MEASURING).items()}
    own = [path for name in metrics if (path := path_of(name.partition("[")[0], kind="metrics"))]
    if own or brought("tasks"):
        users = [path.partition(":")[0] for path in (*own, *brought("tasks").values())]
        digests = dict(sorted((digests | _digests_of(users)).items()))
    return digests


def _digests_of(modules: Iterable[str]) -> dict[str, str]:
    """Return module -> digest of modules of other packages, as far as they are source files."""
    return {module: _digest(path) for module in modules if (path := source_file(module)) is not None}


def code_diff(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return modules that were added, removed or changed."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


@functools.cache
def _reached(root: str, *, rooms: tuple[str, ...], pruned: tuple[str, ...] = ()) -> dict[str, Path]:
    """Return module -> file of what `root` imports at any depth inside these rooms, without bystanders and `pruned`."""
    reached: dict[str, Path] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name in reached or name in pruned or not _counts(name, rooms=rooms):
            continue
        path = _file(name)
        if path is None:
            continue
        reached[name] = path
        waiting += _imports(path)
    return reached


def _counts(module: str, *, rooms: Sequence[str]) -> bool:
    _, _, inside = module.partition(".")
    room, _, rest = inside.partition(".")
    return room in rooms and rest not in BYSTANDERS.get(room, ())


def _file(module: str) -> Path | None:
    """Return the file of a module of this package; None for a name inside a module."""
    base = PACKAGE.parent.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)


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
    """Return 16 hex digits over the lines that run."""
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
