"""Run the ordered stages of a recipe: `arcvideo pipeline recipe=tiny_shorts`.

  arcvideo pipeline recipe=NAME [override ...]          overrides go to every stage
  arcvideo pipeline recipe=NAME status [override ...]   where each stage stands, and why
  ... stale=refuse | rerun | keep                       what to do with stages that were finished otherwise
  ... gates=stop | pass                                 whether a gate that stays shut ends the run
  ... given.NAME=VALUE                                  another value for a `given` of the recipe

Finished stages are skipped and an interrupted one continues from its newest checkpoint. A stage that was finished with
other settings, data, parent or code is refused, with the difference shown. Each stage runs in a process of its own
through `arcvideo.train`, so a stage behaves the same alone and inside a pipeline.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from arcvideo.composing.recipe import (
    PlannedStage,
    Recipe,
    Standing,
    misspelt,
    parent_folder,
    planned_stages,
    standing,
    typed_recipe,
)
from arcvideo.evaluation.gates import Measured, gate_table, judge_gates, plan_gates
from arcvideo.evaluation.targets import Target, compare, judge
from arcvideo.files import error_line
from arcvideo.lineage.lock import alone_in
from arcvideo.places import no_place
from arcvideo.processes.children import run_child
from arcvideo.processes.command import INTERRUPT_EXIT_CODE, REQUEUE_EXIT_CODE, as_command, say_interrupted
from arcvideo.seals import Damaged, read_object, write_sealed
from arcvideo.structured import nearest

STALE_POLICIES = ("refuse", "rerun", "keep")
STALE_EXIT_CODE = 4
GATE_POLICIES = ("stop", "pass")
GATE_EXIT_CODE = 5
GATES = "gates.json"
"""File in the folder of the run: stage -> what became of its gates."""
LAUNCHER = "ARCVIDEO_LAUNCHER"
"""Environment variable with the words that start a stage instead of `python`, e.g. `torchrun --nproc_per_node 8`."""


def run(recipe: Recipe, *, extra: Sequence[str] = (), stale: str = "refuse", gates: str = "stop") -> bool:
    """Prepare, train every unfinished stage in order, compare with the targets; True when all are met.

    Args:
        extra: overrides for every stage.
        stale: what to do with stages that were finished as something else: refuse, rerun (the old folder is renamed),
            or keep.
        gates: what to do when a gate stays shut: stop, or pass, which says so and goes on.

    Raises:
        SystemExit: a step failed (its exit status is passed on), a stage is stale and `stale` is refuse, or a gate
            stays shut and `gates` is stop.
        ValueError: a gate that could never be judged.
    """
    stages = planned_stages(recipe, extra=extra)
    planned = _planned_gates(recipe, stages=stages)
    for run_dir in {stage.config.run_dir for stage in stages}:
        if wrong := no_place(Path(run_dir), run_dir=run_dir):
            raise ValueError(wrong)
    _prepare(recipe, stages=stages)
    for number, stage in enumerate(stages):

        def stands(number: int = number, stage: PlannedStage = stage) -> Standing:
            return standing(stages)[number] if stale != "keep" else standing([stage])[0]

        if not _skipped(stands, recipe=recipe, stale=stale):
            print(f"[{recipe.name}] {stage.name}: python -m arcvideo.train {shlex.join(stage.words)}", flush=True)
            _call([*_launcher(), "-m", "arcvideo.train", *stage.words], what=stage.name)
        if stage.name in planned:
            _pass_gates(stage, planned[stage.name], recipe=recipe, policy=gates)
    return summarise(recipe, stages=stages)


def _prepare(recipe: Recipe, *, stages: Sequence[PlannedStage]) -> None:
    """Make what is not there yet, one pipeline of a folder at a time: two would write the same files."""
    run_dir = Path(stages[0].config.run_dir) if stages else None
    for step in recipe.prepare:
        with alone_in(run_dir / "prepare") if run_dir and not Path(step.makes).exists() else nullcontext():
            if Path(step.makes).exists():
                print(f"[{recipe.name}] {step.name}: there already ({step.makes})", flush=True)
                continue
            print(f"[{recipe.name}] {step.name}: python {step.command}", flush=True)
            started = time.monotonic()
            _call([sys.executable, *shlex.split(step.command)], what=step.name)
            if not Path(step.makes).exists():
                sys.exit(f"error: preparation {step.name!r} ended without making {step.makes}")
            _remember(stages, name=step.name, seconds=time.monotonic() - started)


def _planned_gates(recipe: Recipe, *, stages: Sequence[PlannedStage]) -> dict[str, list[Target]]:
    """Stage -> its gates."""
    names = {stage.folder: stage.name for stage in stages}
    facts = {
        stage.name: Measured(
            parent=names.get(parent_folder(stage.config), ""),
            metrics=stage.config.evaluation.metrics if stage.config.evaluation.measures else (),
        )
        for stage in stages
    }
    return plan_gates(recipe.gates, stages=facts)


def _pass_gates(stage: PlannedStage, gates: Sequence[Target], *, recipe: Recipe, policy: str) -> None:
    """Judge the gates of a finished stage, note what became of them, and stop the run when one stays shut."""
    from arcvideo.report.summary import evaluations

    run_dir = Path(stage.config.run_dir)
    verdicts = judge_gates(gates, metrics=evaluations(run_dir, stages=[stage.name]), run_dir=run_dir)
    rows = [{"metric": verdict.target.metric, "met": verdict.met, "reason": verdict.reason} for verdict in verdicts]
    path = run_dir / GATES
    write_sealed(path, json.dumps({**_noted(path), stage.name: rows}, indent=1) + "\n")
    is_open = all(verdict.met for verdict in verdicts)
    print(f"[{recipe.name}] {stage.name}: gates {'open' if is_open else 'shut'}\n{gate_table(verdicts)}", flush=True)
    if is_open:
        return
    if policy == "pass":
        print(f"[{recipe.name}] {stage.name}: goes on all the same, as gates=pass says", flush=True)
        return
    print(
        f"error: {stage.name} may not go on: a gate stays shut; {stage.folder} keeps what was trained. To go on:\n"
        f"  change settings of {stage.name} (steps, rate, data) and say stale=rerun: it trains again, and the old "
        "folder is renamed\n"
        f"  change `gates` in the recipe, and start the same command: nothing that is finished trains again\n"
        "  gates=pass   go on with the next stage all the same",
        file=sys.stderr,
    )
    sys.exit(GATE_EXIT_CODE)


def _skipped(stands: Callable[[], Standing], *, recipe: Recipe, stale: str) -> bool:
    """Return whether a stage needs no run; says so, refuses it, or moves what stands in its way.

    Args:
        stands: looks how the stage stands, again after the job that works in its folder has ended.
    """
    entry = stands()
    name, state = entry.stage.name, entry.state
    if state.word == "finished":
        print(f"[{recipe.name}] {name}: finished already", flush=True)
    elif state.word == "unknown":
        print(f"[{recipe.name}] {name}: finished; not compared, {state.reasons[0]}", flush=True)
    elif state.word == "unmeasured":
        print(f"[{recipe.name}] {name}: trained already, measured again: {'; '.join(state.reasons)}", flush=True)
        return False
    elif state.word == "stale" and stale == "keep" and state.manifest is not None:
        print(f"[{recipe.name}] {name}: kept as it is, though {'; '.join(state.reasons)}", flush=True)
    elif state.word == "stale" and stale == "rerun":
        with alone_in(entry.stage.folder):  # a job that still writes there must not lose the folder
            state = stands().state
            if state.word == "stale":
                aside = _move_aside(entry.stage.folder)
                print(f"[{recipe.name}] {name}: runs again ({'; '.join(state.reasons)}); what was there is in {aside}")
                return False
        return _skipped(stands, recipe=recipe, stale=stale)  # another pipeline was as fast
    elif state.word == "stale":
        print(stale_text(entry), file=sys.stderr)
        sys.exit(STALE_EXIT_CODE)
    else:
        return False
    return True


def stale_text(entry: Standing) -> str:
    """Return why a stage is refused and what can be done."""
    reasons = "\n".join(f"  {reason}" for reason in entry.state.reasons)
    what = "finished" if entry.state.manifest else f"begun (step {entry.state.step})"
    return (
        f"error: {entry.stage.name} in {entry.stage.folder} was {what} as something else than is asked for now:\n"
        f"{reasons}\n"
        "Undo the change, run it as another recipe (run_dir=...), or say what to do with it:\n"
        "  stale=rerun   train it and its children again; the old folders are renamed, not deleted\n"
        "  stale=keep    take finished stages as they are"
    )


def _move_aside(folder: Path) -> Path:
    """Rename a folder to `<name>.old-<n>`."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def status(recipe: Recipe, *, extra: Sequence[str] = ()) -> str:
    """Return the tree of stages: parents above children, and where each stands."""
    entries = standing(planned_stages(recipe, extra=extra))
    rows = [f"{recipe.name}: {recipe.about.strip().split('. ')[0]}" if recipe.about else recipe.name]
    depth: dict[str, int] = {}
    for entry in entries:
        if entry.parent not in depth:
            depth[entry.parent] = 0
            there = (Path(entry.parent) / "config.json").exists() or (Path(entry.parent) / "manifest.json").exists()
            rows.append(f"{entry.parent}  {'there' if there else 'not there yet'}")
        level = depth[entry.parent] + 1
        depth[str(entry.stage.folder)] = level
        rows.append(f"{'   ' * (level - 1)}└─ {entry.stage.name}  {_told(entry)}")
        rows += [f"{'   ' * level}     {reason}" for reason in entry.state.reasons if entry.state.word != "new"]
    return "\n".join(rows)


def _told(entry: Standing) -> str:
    state = entry.state
    if state.word == "new":
        return f"not begun ({state.reasons[0]})" if state.reasons else "not begun"
    if state.word == "interrupted":
        return f"interrupted at step {state.step} of {entry.stage.config.runner.steps}; the same command continues"
    if state.manifest is None:
        return f"{state.word} at step {state.step}"
    took = f"{state.manifest.steps} steps, {state.manifest.seconds / 60:.1f} min"
    return f"{state.word}  {state.manifest.identity[:8]}  {took}"


def summarise(recipe: Recipe, *, stages: Sequence[PlannedStage]) -> bool:
    """Write summary.json and the page, print the table; True when every target is met."""
    from arcvideo.report.page import PAGE
    from arcvideo.report.summary import evaluations, print_summary, write_summary

    if not stages:
        return True
    run_dir = Path(stages[0].config.run_dir)
    names = [stage.name for stage in stages]
    verdicts = judge(recipe.targets, metrics=evaluations(run_dir, stages=names), run_dir=run_dir)
    differences = compare(recipe.comparisons, run_dir=run_dir)
    summary = write_summary(
        run_dir, stages=names, verdicts=verdicts, prepared=_remembered(run_dir), differences=differences
    )
    print_summary(summary, page=run_dir / PAGE)
    return bool(summary["passed"])


def _launcher() -> list[str]:
    return shlex.split(os.environ.get(LAUNCHER, "")) or [sys.executable]


def _call(command: list[str], *, what: str) -> None:
    """Run a process; its failure is ours, with its status."""
    status = run_child(command)
    if status == REQUEUE_EXIT_CODE:
        print(f"{what} was asked to stop; the same command continues from there", file=sys.stderr)
    elif status and status != INTERRUPT_EXIT_CODE:  # after Ctrl-C the stage itself has said so
        print(f"error: {what} ended with status {status}; the same command continues from there", file=sys.stderr)
    if status:
        sys.exit(status)


def _remember(stages: Sequence[PlannedStage], *, name: str, seconds: float) -> None:
    if not stages:
        return
    path = Path(stages[0].config.run_dir) / "prepared.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, json.dumps({**_remembered(path.parent), name: round(seconds, 1)}) + "\n")


def _remembered(run_dir: Path) -> dict[str, Any]:
    seconds = _noted(run_dir / "prepared.json")
    return {name: value for name, value in seconds.items() if isinstance(value, int | float)}


def _noted(path: Path) -> dict[str, Any]:
    """Return what was noted for people; nothing, which is said, when it is damaged: it decides nothing."""
    try:
        return read_object(path) if path.exists() else {}
    except Damaged as error:
        print(f"{error}; what it said is left out", file=sys.stderr)
        return {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read `recipe=NAME`, `status`, `stale=` and `gates=`; all other words are overrides for every stage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    names = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    if len(names) != 1:
        sys.exit("error: name one recipe: python -m arcvideo.pipeline recipe=tiny_shorts")
    policies = [word.removeprefix("stale=") for word in words if word.startswith("stale=")] or ["refuse"]
    if len(policies) != 1 or policies[0] not in STALE_POLICIES:
        sys.exit(f"error: stale={','.join(policies)}: choose one of {', '.join(STALE_POLICIES)}")
    passing = [word.removeprefix("gates=") for word in words if word.startswith("gates=")] or ["stop"]
    if len(passing) != 1 or passing[0] not in GATE_POLICIES:
        sys.exit(f"error: gates={','.join(passing)}: choose one of {', '.join(GATE_POLICIES)}")
    ours = ("recipe=", "stale=", "gates=", "given.")
    extra = [word for word in words if not word.startswith(ours) and word != "status"]
    strange = [word for word in extra if "=" not in word and not word.startswith("~")]
    if strange:
        sys.exit(f"error: {strange[0]}: expected status, or KEY=VALUE{nearest(strange[0], ['status'])}")
    if problems := misspelt(extra, own=("stale", "gates")):
        sys.exit(f"error: {problems[0]}")
    try:
        recipe = typed_recipe(names[0], words=words, extra=extra)
        if "status" in words:
            print(status(recipe, extra=extra))
            return
        met = run(recipe, extra=extra, stale=policies[0], gates=passing[0])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error_line(error, key='run_dir')}")
    except KeyboardInterrupt:
        say_interrupted("; the same command continues from there")
        sys.exit(INTERRUPT_EXIT_CODE)
    sys.exit(0 if met else 3)


if __name__ == "__main__":
    as_command(main)
