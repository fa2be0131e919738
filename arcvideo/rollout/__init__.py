"""Completions become a step of GRPO or DPO: rewards, groups, gates, rows."""
