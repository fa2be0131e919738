"""The ARC-Hunyuan-Video model: one class, the released key names, tiny and 7B by settings only."""
