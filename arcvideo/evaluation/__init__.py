"""Evaluation: metrics with intervals and chance levels on held-out prompts."""
