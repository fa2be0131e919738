"""What an export carries beside its weights: the code that `trust_remote_code` runs, and modes that others can read.

transformers copies the file that `auto_map` names, and what that file imports from beside it. The first takes the
classes from the package arcvideo; where it is not installed, the second unpacks the modules that they need.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import re
import uuid
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
"""The folder that holds the package."""
CLASSES = {
    "ArcVideoConfig": "arcvideo.model.configuration",
    "ArcVideoForConditionalGeneration": "arcvideo.model.modeling",
    "ArcVideoProcessor": "arcvideo.processing",
}
"""Class that transformers asks for -> its module."""
MODEL_KINDS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
CODE_FILE, SOURCE_FILE = "arcvideo_classes.py", "arcvideo_source.py"
_NAMED = re.compile(r"(arcvideo(?:\.\w+)+)(?::\w+)?")
"""How a string names a module that is imported by name."""


def auto_map(*kinds: str, name: str) -> dict[str, str]:
    """Return Auto class -> where a folder says that its class is."""
    return dict.fromkeys(kinds, f"{Path(CODE_FILE).stem}.{name}")


def write_code(directory: Path) -> None:
    """Write the file that `auto_map` names, and the source for processes without the package."""
    (directory / CODE_FILE).write_text(_classes(), encoding="utf-8")
    (directory / SOURCE_FILE).write_text(_source(), encoding="utf-8")


def share(directory: Path) -> None:
    """Give every file of a folder the mode that the process's umask leaves: safetensors writes for its owner alone."""
    probe = directory / f".{uuid.uuid4().hex}"
    probe.touch(mode=0o666)
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in directory.iterdir():
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _classes() -> str:
    # transformers looks for imports line by line, in this file too: a line of it must not look like one.
    lines = [
        '"""Where transformers finds the classes of this folder: the package arcvideo, or a copy beside this file."""',
        "",
        "import importlib",
        "",
        "import av  # transformers tells by name what is not installed",
        "",
        "try:",
        "    from arcvideo import __version__",
        "except ImportError:",
        f"    from .{Path(SOURCE_FILE).stem} import unpack",
        "",
        "    unpack()",
        "",
        *(f'{name} = importlib.import_module("{module}").{name}' for name, module in CLASSES.items()),
    ]
    return "\n".join(lines) + "\n"


_UNPACK = '''

def unpack():
    """Write the files to a folder beside this one, whole or not at all, and have Python look for modules there."""
    place = pathlib.Path(__file__).resolve().parent / f"arcvideo_{DIGEST}"
    if not place.is_dir():
        made = pathlib.Path(tempfile.mkdtemp(dir=place.parent))
        packed = {name: zlib.decompress(base64.b64decode(text)) for name, text in PACKED.items()}
        for name, content in {**packed, **{name: text.encode() for name, text in TEXTS.items()}}.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(content)
        try:
            made.rename(place)
        except OSError:  # another process was first
            shutil.rmtree(made)
    sys.path.append(str(place))
    sys.modules.pop("arcvideo", None)  # a folder of that name that is no package
    importlib.invalidate_caches()
'''


@cache
def _source() -> str:
    texts, packed = {}, {}
    for path in sorted(_needed()):
        name, content = path.relative_to(ROOT).as_posix(), path.read_bytes()
        if path.suffix in (".py", ".txt"):
            texts[name] = content.decode()
        else:
            packed[name] = base64.b64encode(zlib.compress(content, 9)).decode()
    digest = hashlib.sha256(repr((texts, packed)).encode()).hexdigest()[:16]
    parts = [
        '"""The modules of arcvideo that this model needs, for processes in which the package is not installed.\n\n'
        'Apache-2.0. DejaVu Sans, which stamps the time, has a licence of its own, which is among the files.\n"""\n\n'
        "import base64\nimport importlib\nimport pathlib\nimport shutil\nimport sys\nimport tempfile\nimport zlib\n\n"
        f'DIGEST = "{digest}"\n',
        _UNPACK,
        "\n\nTEXTS = {\n" + "".join(f'"{name}": {_quoted(text)},\n' for name, text in texts.items()) + "}\n",
        "PACKED = {\n" + "".join(f'"{name}": "{text}",\n' for name, text in packed.items()) + "}\n",
    ]
    return "".join(parts)


def _quoted(text: str) -> str:
    """Return Python for a text, which stays readable."""
    escaped = text.replace("\\", "\\\\").replace("'''", "\\'\\'\\'")
    return f"'''\\\n{escaped}'''"


def _needed() -> set[Path]:
    """Return the files of the modules that the classes reach by import, and what lies in those folders beside code."""
    waiting, needed = list(CLASSES.values()), set[Path]()
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None or path in needed:
            continue
        needed.add(path)
        waiting += [name.rpartition(".")[0], *_imports(path)]
    needed |= {file for path in needed for file in (path.parent / "fonts").glob("*")}
    return needed


def _file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    """Yield names that may be modules of ours: imported ones, and strings that are the name of one."""
    node: Any
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (entry.name for entry in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{entry.name}" for entry in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (named := _NAMED.fullmatch(node.value)):
            yield named[1]
