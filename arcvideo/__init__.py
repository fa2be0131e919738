"""Staged training of short-video models like ARC-Hunyuan-Video-7B.

Importing the package makes its model known to transformers: `AutoModelForImageTextToText`, `AutoProcessor`, `pipeline`.
"""

import sys

from arcvideo.processes.safepath import leave_working_directory

leave_working_directory()

from arcvideo.processes.command import begin  # noqa: E402

begin(sys.orig_argv)  # before anything is imported that takes its time

from arcvideo.registration import register  # noqa: E402

__version__ = "0.1.0"

register()
