"""Write the page of a pipeline's runs: `arcvideo report runs/tiny_shorts`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from arcvideo.files import error_line
from arcvideo.places import words_from_home
from arcvideo.processes.command import as_command
from arcvideo.report.page import write_page


def main() -> None:
    """Write the page and say where it is."""
    parser = argparse.ArgumentParser(prog="arcvideo report", description="Write the HTML page of a pipeline's runs.")
    parser.add_argument("run_dir", type=Path, help="folder of the pipeline, for example runs/tiny_shorts")
    try:
        print(write_page(parser.parse_args(words_from_home(None)).run_dir))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error_line(error)}")


if __name__ == "__main__":
    as_command(main)
