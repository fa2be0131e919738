"""What mkdocs cannot do by itself: settings and the API are read from the code, every decision is in the menu."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from arcvideo.composing.reference import markdown

OPTIONAL = {"Reference": ["manifest.md", "performance.md"]}
"""Pages that other parts of the project write: in the menu when they are there."""


def on_config(config: Any) -> Any:
    """Complete the menu."""
    docs = Path(config.docs_dir)
    decisions = sorted(path.relative_to(docs).as_posix() for path in (docs / "decisions").glob("*.md"))
    for part in config.nav:
        ((title, pages),) = part.items()
        if title == "Decisions":
            part[title] = decisions
        for page in OPTIONAL.get(title, []):
            if (docs / page).exists() and page not in pages:
                pages.append(page)
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of settings and of the API."""
    files.append(File.generated(config, "settings.md", content=markdown()))
    files.append(File.generated(config, "api.md", content=api(Path(config.docs_dir).parent / "arcvideo")))
    return files


def api(package: Path) -> str:
    """Return the page that lists what every module offers: public names with what they say of themselves."""
    lines = [
        "# API\n",
        "Public functions and classes by room, with the beginning of their docstrings. What a package of your own may",
        "bring is in [Adding things](adding.md).\n",
    ]
    rooms: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if any(part.startswith("_") for part in parts) or "conf" in parts:
            continue
        rows = list(_offers(path))
        if rows:
            module = ".".join(("arcvideo", *parts))
            rooms.setdefault(parts[0] if len(parts) > 1 else "top level", []).extend([f"\n### {module}\n", *rows])
    for room, rows in rooms.items():
        lines += [f"\n## {room}", *rows]
    return "\n".join(lines) + "\n"


def _offers(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            said = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
            words = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            yield f"- `{node.name}{words}`" + (f": {said}" if said else "")
