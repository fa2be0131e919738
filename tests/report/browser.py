"""A headless Chromium that reaches no network."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@dataclass(frozen=True)
class Shown:
    console: list[str]
    """What the page made the browser complain about."""
    dom: str


def show(
    page: Path,
    *,
    scratch: Path,
    picture: Path | None = None,
    width: int = 1160,
    height: int = 2400,
    query: str = "",
    patience_ms: int = 0,
) -> Shown:
    """Open a file; writes a screenshot when asked to, else returns the document after its scripts.

    Args:
        page: the file.
        scratch: for the browser's own files.
        picture: where to write the screenshot.
        width: of the window.
        height: of the window.
        query: what stands behind the `?` of the address.
        patience_ms: milliseconds of the page's own clock that its scripts may take.
    """
    assert CHROMIUM is not None
    act = [f"--screenshot={picture}"] if picture else ["--dump-dom"]
    act += [f"--virtual-time-budget={patience_ms}"] if patience_ms else []
    address = page.as_uri() + (f"?{query}" if query else "")
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"),
            *("--log-level=0", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--user-data-dir={scratch}/profile", f"--window-size={width},{height}", *act, address),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    return Shown(console=[line for line in done.stderr.splitlines() if "CONSOLE" in line], dom=done.stdout)
