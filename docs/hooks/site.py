"""What mkdocs cannot do by itself: settings are read from the code, every page of decisions is in the menu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from arcvideo.reference import markdown

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
    """Add the page of settings."""
    files.append(File.generated(config, "settings.md", content=markdown()))
    return files
