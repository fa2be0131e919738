"""Prompts become completions: prefill once, many rows behind it, drawn by their place."""
