"""Staged training of short-video models like ARC-Hunyuan-Video-7B."""

__version__ = "0.1.0"
