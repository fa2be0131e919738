"""What a stage must reach, or must not lose, before the next one is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from arcvideo.evaluation.targets import Metrics, Target, Verdict, judge

PARENT = "parent"
"""In place of a stage's name: the stage that this one starts from."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a stage before it runs."""

    parent: str
    """Name of the stage it starts from; empty when that is no stage of the recipe."""
    metrics: Collection[str]
    """What is measured after it; empty when nothing is."""


def plan_gates(gates: Sequence[Target], *, stages: Mapping[str, Measured]) -> dict[str, list[Target]]:
    """Return stage -> its gates, with the name of its parent in place of `parent`.

    Args:
        gates: of a recipe.
        stages: its stages in the order in which they run.

    Raises:
        ValueError: a gate that could never be judged; the message names it and the remedy.
    """
    order = list(stages)
    planned: dict[str, list[Target]] = {}
    for number, gate in enumerate(gates):
        name = f"gates[{number}]"
        if gate.stage not in stages:
            raise ValueError(f"{name}.stage={gate.stage}: no such stage; the recipe has {', '.join(order)}")
        above = _compared(gate.above_stage, gate=gate, stages=stages, key=f"{name}.above_stage")
        not_below = _compared(gate.not_below_stage, gate=gate, stages=stages, key=f"{name}.not_below_stage")
        metrics = [gate.metric, *([gate.above_metric] if gate.above_metric else [])]
        for stage in filter(None, (gate.stage, above, not_below)):
            missing = [
                metric for metric in metrics[: 2 if stage == gate.stage else 1] if metric not in stages[stage].metrics
            ]
            if missing:
                raise ValueError(
                    f"{name}: {stage} does not measure {missing[0]}, so the gate could never open; set "
                    "evaluation.shards of that stage, and name the metric in its evaluation.metrics"
                )
        planned.setdefault(gate.stage, []).append(replace(gate, above_stage=above, not_below_stage=not_below))
    return planned


def _compared(other: str | None, *, gate: Target, stages: Mapping[str, Measured], key: str) -> str | None:
    """Return the name of the stage that a gate compares with, which runs before it; None when it compares with none."""
    if other is None:
        return None
    if other == PARENT:
        other = stages[gate.stage].parent
        if not other:
            raise ValueError(f"{key}={PARENT}: {gate.stage} starts from weights that no stage of the recipe measured")
    order = list(stages)
    if other not in stages or order.index(other) >= order.index(gate.stage):
        before = ", ".join(order[: order.index(gate.stage)]) or "none"
        raise ValueError(f"{key}={other}: must be a stage that runs before {gate.stage}: {before}, or {PARENT}")
    return other


def judge_gates(gates: Sequence[Target], *, metrics: Mapping[str, Metrics], run_dir: Path) -> list[Verdict]:
    """Return what became of a stage's gates; what cannot be compared keeps a gate shut.

    Args:
        gates: of one stage, from `plan_gates`.
        metrics: stage -> metric -> figures, as `judge` reads them.
        run_dir: folder of the stages, whose predictions are compared item by item.
    """
    verdicts = []
    for gate in gates:
        try:
            verdicts += judge([gate], metrics=metrics, run_dir=run_dir)
        except (ValueError, OSError) as error:
            verdicts.append(Verdict(target=gate, met=False, reason=f"cannot be judged: {error}"))
    return verdicts


def wanted(gate: Target) -> str:
    """Return what a gate asks for, in words."""
    demands = []
    if gate.at_least is not None:
        demands.append(f"at least {gate.at_least:g}{' for sure' if gate.surely else ''}")
    if gate.at_most is not None:
        demands.append(f"at most {gate.at_most:g}{' for sure' if gate.surely else ''}")
    if gate.at_chance:
        demands.append("no better than chance")
    if gate.above_metric is not None:
        demands.append(f"above {gate.above_metric}")
    if gate.above_stage is not None:
        demands.append(f"better than {gate.above_stage}")
    if gate.not_below_stage is not None:
        margin = f"at most {gate.within:g} worse" if gate.within is not None else "not shown to be worse"
        demands.append(f"{margin} than {gate.not_below_stage}")
    return ", ".join(demands) or "measured"


def gate_table(verdicts: Sequence[Verdict]) -> str:
    """Return a line for each gate: open or shut, metric, what is wanted, what was measured."""
    rows = [
        ("open" if verdict.met else "SHUT", verdict.target.metric, wanted(verdict.target), verdict.reason)
        for verdict in verdicts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip() for row in rows
    )
