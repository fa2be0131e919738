"""Draw the pictures of docs/gallery.md from a finished run: `python -m benchmarks.gallery runs/tiny_shorts`.

Each picture is what a command of arcvideo makes, with fewer colours, so that all of them together stay small. Pages are
shown by a headless Chromium; without one their pictures are left as they are.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from arcvideo.report.page import write_page
from arcvideo.shards.index import ensure_indexes

COLOURS = 64
WIDEST = 1366
"""Pixels; wider pictures are made smaller."""
SCREENS = {"report.png": (1366, 1180), "report-phone.png": (390, 900)}
"""Picture -> window, in pixels."""


def small(picture: Path, *, out: Path) -> Path:
    """Write a picture as a PNG of few colours; return its path."""
    with Image.open(picture) as found:
        image = found.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    return out


def made_by_commands(shard: Path, *, scratch: Path) -> dict[str, Path]:
    """Return name -> picture of a clip, and of what a shard holds."""
    clip, lengths = scratch / "clip.png", scratch / "lengths.png"
    shards = [sys.executable, "-m", "arcvideo.data.shards"]
    (index,) = ensure_indexes([shard], progress=False)
    seen = index.clips["duration"] * (index.clips["sound_samples"] > 0)  # the first of the longest that are heard, too
    key = index.key(int(seen.argmax()))
    for command in (
        ["inspect", str(shard), "--key", key, "--image", str(clip)],
        ["stats", str(shard), "--plot", str(lengths)],
    ):
        subprocess.run([*shards, *command], check=True, stdout=subprocess.DEVNULL)
    return {path.name: path for path in (clip, lengths)}


def shown_by_a_browser(page: Path, *, scratch: Path) -> dict[str, Path]:
    """Return name -> picture of the beginning of a page; none without a browser."""
    browser = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if browser is None:
        print("no Chromium here: pictures of the report are left as they are", file=sys.stderr)
        return {}
    pictures = {}
    for name, (width, height) in SCREENS.items():
        pictures[name] = scratch / name
        # The narrowest window is 500 pixels wide: a frame in it is as narrow as a phone.
        around = scratch / f"{name}.html"
        around.write_text(
            f'<body style="margin:0"><iframe src="{page.absolute().as_uri()}" style="border:0" width="{width}" '
            f'height="{height}" scrolling="no"></iframe>'
        )
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--screenshot={pictures[name]}",
            f"--window-size={max(width, 500)},{height}", f"--user-data-dir={scratch}/browser", around.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        with Image.open(pictures[name]) as found:
            found.crop((0, 0, width, height)).save(pictures[name])
    return pictures


def main() -> None:
    """Draw all pictures and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished pipeline with a stage grpo")
    parser.add_argument("--shard", type=Path, default=Path("data/tiny_shorts/test-000000.tar"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "gallery")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        pictures = made_by_commands(options.shard, scratch=scratch)
        pictures |= shown_by_a_browser(write_page(options.run), scratch=scratch)
        pictures["rollouts.png"] = options.run / "grpo" / "rollouts.png"
        for name, picture in pictures.items():
            if picture.exists():
                made = small(picture, out=options.out / name)
                print(f"{made}  {made.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
