"""Staged training of short-video models like ARC-Hunyuan-Video-7B.

Importing the package makes its model known to transformers: `AutoModelForImageTextToText`, `AutoProcessor`, `pipeline`.
"""

from arcvideo.registration import register

__version__ = "0.1.0"

register()
