"""Nothing is imported from the folder that a command happens to be started in. Imports nothing itself."""

from __future__ import annotations

import os
import sys


def leave_working_directory() -> None:
    """Take back what `python -m arcvideo...` does: it looks for every module in the working directory first.

    Somebody else's folder may hold a `yaml.py`, a `hydra_plugins` or what looks like an installed package. A plug-in
    that is named is still found there (`named.py`), and our own sources, where that is what they were started from.
    """
    place = sys.path[0] if sys.path else ""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if place and sys.argv[:1] == ["-m"] and not sys.flags.safe_path and os.path.realpath(place) != ours:
        del sys.path[0]
