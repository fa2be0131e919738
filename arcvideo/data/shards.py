"""The command line of shards: `arcvideo shards COMMAND`.

index    makes the sidecar indexes            inspect  shows a clip as the model will see it
verify   decodes and hashes every clip        stats    counts tasks, seconds, tokens
import   turns other people's formats into shards
transcribe  adds what Whisper hears    split    holds out a share of own questions, by clip
tag      writes back which half of its clip each answer needs
fingerprint  of picture and sound       overlap  finds clips that two sets share
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from arcvideo.data import commands
from arcvideo.files import error_line
from arcvideo.places import words_from_home
from arcvideo.processes.command import as_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = commands.parser().parse_args(words_from_home(arguments))
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:  # a full disk, a file where a folder should be
        print(f"error: {error_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    as_command(main)
