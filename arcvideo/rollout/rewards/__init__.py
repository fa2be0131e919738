"""Rewards: `f(completions, **columns) -> list[float | None]`, the protocol of TRL, whose own rewards work by name.

`columns` are lists as long as `completions`: `prompts` (text), `completion_ids`, `key`, `task`, `duration` (seconds of
the clip, None without one), and one column for each entry of the samples' truth (`letter`, `options`, `span`, `text`,
...; None where a sample has no such entry). None as a result means that the reward does not concern this completion.

Besides columns a reward gets `log_extra(name, values)`, as in TRL: what it hands over there (one value a completion) is
written beside the completion. Ours log `read`, what was understood, and `problem`, why nothing was (None if it was).
"""
