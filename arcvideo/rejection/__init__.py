"""Sampled answers worth keeping, written as shards: `arcvideo sample`."""
