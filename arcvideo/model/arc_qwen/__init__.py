"""ARC-Qwen-Video: Qwen2.5-VL with sound added onto its visual tokens."""
