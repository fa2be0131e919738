"""torchrun for a stage, without its wall of text: `python -m arcvideo.torchrun --nproc_per_node 8 stage=sft ...`.

The options before the first override are torchrun's own. The rank that failed has said why; this only hands on its exit
status, which torchrun itself turns into 1, so that status 85 (saved, please requeue) reaches whoever waits for it.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence


def main(words: Sequence[str] | None = None) -> None:
    """Start the ranks, wait, and exit with 0 or the status of the first rank that failed."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    arguments = parse_args(words)
    arguments.training_script_args = [arguments.training_script, *arguments.training_script_args]
    arguments.training_script, arguments.module = "arcvideo.train", True
    try:
        run(arguments)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: rank {rank} was ended by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)
            sys.exit(128 - failure.exitcode)
        sys.exit(failure.exitcode)


if __name__ == "__main__":
    main()
