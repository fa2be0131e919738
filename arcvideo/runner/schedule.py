"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from arcvideo.runner.settings import ScheduleSettings


def lr_ratio(step: int, *, schedule: ScheduleSettings, steps: int) -> float:
    """Share of the peak learning rate at `step`, counted from 0, of a run of `steps` steps.

    The warm-up ends at the peak on step `warmup_steps`, or halfway through a run that is not longer than that; the
    decay reaches `min_ratio` on the last step.
    """
    warmup = schedule.warmup_steps if schedule.warmup_steps < steps else steps // 2
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return 1.0
    span = max(steps - 1 - warmup, 1)
    done = min((step - warmup) / span, 1.0)
    left = 1.0 - done if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.min_ratio + (1.0 - schedule.min_ratio) * left
