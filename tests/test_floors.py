"""The shape of the house: imports go down, one room per framework, short files, nothing that runs foreign bytes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "arcvideo"
FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = [*FILES, *sorted((ROOT / "tests").rglob("*.py"))]

FLOORS = (
    {"registration", "hidden", "types", "structured", "layout", "files", "progress", "places", "processes"},
    {"seals", "named"},
    {"tasks"},
    {"media", "model", "objectives", "render", "flops", "saving"},
    {"decoding", "tracking", "remote"},
    {"shards"},
    {"planning", "bench", "fingerprints"},
    {"feed"},
    {"messages", "processing", "lineage", "runner", "report", "sampling"},
    {"synthetic", "rollout"},
    {"rejection", "evaluation"},
    {"measuring"},
    {"composing"},
    {"validation", "torchrun"},
    {"stage", "ask", "evaluate"},
    {"verify", "verify_resume", "preflight", "pipeline"},
    # What is typed and imported by nobody; train checks settings before torch is imported.
    {"train", "data"},
    {"__main__"},
)
"""From the ground up. A room is a folder or a single file of the package."""

NEIGHBOURS = {
    ("processes", "hidden"): {"*"},
    # What a prompt must agree on with the model: ids and positions.
    ("render", "model"): {"positions", "special"},
    ("flops", "model"): {"settings"},  # what a step costs follows from sizes alone
    # The parity command also compares preprocessing with the reference.
    ("model", "media"): {"audio", "frames", "read"},
    ("model", "render"): {"*"},
    # What trainers of others get as `loss` is computed as ours is, a few rows in fp32 at a time; what an objective asks
    # of targets is answered by the head.
    ("model", "objectives"): {"logprobs", "scores"},
    ("processing", "messages"): {"*"},
}
"""(room, neighbour on the same floor) -> the neighbour's modules it may import."""

FRAMEWORKS = {
    "hydra": {
        "train.py",
        "composing/sweep.py",
        "composing/compose.py",
        "composing/grammar.py",
        "composing/ending.py",
    },
    "omegaconf": {"train.py", "composing/config.py", "composing/compose.py"},
    "deepspeed": {"runner/engine.py"},
    "wandb": {"tracking/metrics.py", "tracking/sent.py"},
    "mlflow": {"tracking/mirrors.py"},
    "swanlab": {"tracking/mirrors.py"},
    "trackio": {"tracking/mirrors.py"},
    "webdataset": {"remote/whole.py"},
    "requests": {"remote/origin.py"},
    "fsspec": {"remote/origin.py"},
    "whisper": {"media/audio.py", "model/towers/audio.py"},
    "peft": {"model/disk/lora.py"},
    "av": {"media/", "decoding/", "synthetic/encode.py"},
    "trl": {"rollout/"},
    "transformers": {"model/", "sampling/", "processing.py", "measuring/answering/hub.py"},
    "jinja2": {"report/page.py"},
    "yaml": {"composing/recipe.py", "synthetic/base.py"},
    "tqdm": {"progress.py"},  # in a log its bars are lines without end
}
"""Framework -> the only places (files, or folders with a slash) that import it."""

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}
UNSAFE_WORDS = {"allow_pickle=True", "trust_remote_code=True", "weights_only=False", "shell=True"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything a file imports, at any depth; `from a.b import c` gives a.b and a.b.c."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name of what is imported"
            module = node.module or ""
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def room_imports(path: Path) -> Iterator[tuple[str, str, int]]:
    """(room, module inside it or "", line) of every import of another room."""
    for name, line in imports(path):
        package, _, rest = name.partition(".")
        if package == "arcvideo" and rest and rest.split(".")[0] != room_of(path):
            room, _, inner = rest.partition(".")
            yield room, inner.split(".")[0], line


def floor_of(room: str) -> int | None:
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def dotted(node: ast.expr) -> str:
    """`a.b` of an attribute or a name, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in FILES} - {"__init__"}
    assert sorted(room for room in rooms if floor_of(room) is None) == []


def test_imports_go_down() -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {room}, which is above"
        for path in FILES
        for room, _, line in room_imports(path)
        if (floor_of(room) or 0) > (floor_of(room_of(path)) or 0)
    ]
    assert wrong == []


def test_rooms_of_one_floor_import_only_what_the_table_lists() -> None:
    wrong = []
    for path in FILES:
        for room, inner, line in room_imports(path):
            if floor_of(room) != floor_of(room_of(path)):
                continue
            allowed = NEIGHBOURS.get((room_of(path), room), set())
            if "*" not in allowed and inner not in allowed:
                wrong.append(f"{name_of(path)}:{line} imports {room}.{inner}")
    assert wrong == []


def test_the_table_of_neighbours_lists_nothing_unused() -> None:
    used = {
        (room_of(path), room, module)
        for path in FILES
        for room, inner, _ in room_imports(path)
        for module in ("*", inner)
    }
    stale = [
        f"{room} -> {neighbour}.{module}"
        for (room, neighbour), modules in NEIGHBOURS.items()
        for module in modules
        if (room, neighbour, module) not in used
    ]
    assert stale == []


def circles(arrows: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Names that reach each other along the arrows, circle by circle."""
    reach: dict[str, set[str]] = {}
    for start in arrows:
        reached: set[str] = set()
        waiting = [*arrows[start]]
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += arrows.get(name, ())
        reach[start] = reached
    return sorted({tuple(sorted(b for b in reach[a] if a in reach[b])) for a in reach if a in reach[a]})


def file_arrows() -> dict[str, set[str]]:
    """File -> files of the package that it imports, also inside functions."""
    modules = {f"arcvideo.{name_of(path).removesuffix('.py').removesuffix('/__init__').replace('/', '.')}": path
               for path in FILES}  # fmt: skip
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        named = {name for name, _ in imports(path)}
        # `from package import module` needs the module; the package's own file only when something of it is named.
        named -= {name for name in named if any(other.startswith(f"{name}.") and other in modules for other in named)}
        arrows[name_of(path)] = {name_of(modules[name]) for name in named if name in modules}
    return arrows


def room_arrows() -> dict[str, set[str]]:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        if name_of(path) == "model/disk/parity_preprocessing.py":
            continue  # a command in the wrong room: it renders as training does, and nothing in the model needs it
        arrows.setdefault(room_of(path), set()).update(room for room, _, _ in room_imports(path))
    return arrows


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [("b", "c")]
    assert len(file_arrows()["feed/source.py"]) > 5


def test_files_do_not_import_each_other_in_a_circle() -> None:
    """Not inside functions either: whoever changes one file of a circle has changed them all."""
    assert circles(file_arrows()) == []


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    assert circles(room_arrows()) == []


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_stays_in_its_room(framework: str) -> None:
    places = tuple(FRAMEWORKS[framework])
    wrong = [
        f"{name_of(path)}:{line}"
        for path in FILES
        for name, line in imports(path)
        if name.split(".")[0] == framework and not name_of(path).startswith(places)
    ]
    assert wrong == []


def test_no_file_is_too_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in ALL_FILES}
    assert {str(path): lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    wrong = []
    for path in ALL_FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    wrong.append(f"{path}:{node.lineno} {node.name} has {lines} lines")
    assert wrong == []


def test_nothing_is_called_utils() -> None:
    assert [str(path) for path in ALL_FILES if path.stem in ("utils", "util", "helpers", "helper", "misc")] == []


def test_nothing_runs_code_from_files() -> None:
    found = []
    for path in FILES:
        found += [
            f"{name_of(path)}:{line} {name}" for name, line in imports(path) if name.split(".")[0] in UNSAFE_MODULES
        ]
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                words = {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}
                called = dotted(node.func)
                plain_tensors = called == "torch.load" and "weights_only=True" in words
                unsafe = sorted(words & UNSAFE_WORDS)
                unsafe += [called] if called in UNSAFE_CALLS and not plain_tensors else []
                found += [f"{name_of(path)}:{node.lineno} {what}" for what in unsafe]
    assert found == []


def test_settings_are_read_without_torch() -> None:
    """Also not through another import: a wrong key is told before seconds are spent on loading torch."""
    modules = [
        f"arcvideo.{name_of(path).removesuffix('.py').replace('/', '.')}" for path in PACKAGE.glob("*/settings.py")
    ]
    assert len(modules) >= 6
    light = ["arcvideo.composing.config", "arcvideo.structured", "arcvideo.lineage.parents", *modules]
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers', 'deepspeed', 'whisper', 'av'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_repository_holds_no_large_file_but_its_fixtures() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    large = [str(file.relative_to(ROOT)) for file in files if file.is_file() and file.stat().st_size > 1 << 20]
    assert [name for name in large if not name.startswith("tests/fixtures/parity/")] == []
