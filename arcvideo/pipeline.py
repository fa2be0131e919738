"""Run the ordered stages of a recipe: `python -m arcvideo.pipeline recipe=tiny_shorts`.

Finished stages are skipped and an interrupted one continues from its newest checkpoint. Each stage runs in a process
of its own through `arcvideo.train`, so a stage behaves the same alone and inside a pipeline.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from arcvideo.evaluation.targets import Target, judge
from arcvideo.lineage.manifest import finished
from arcvideo.structured import filled

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A step before the stages: making data, or weights to start from."""

    name: str
    """What it makes."""
    command: str
    """Arguments of `python`, for example `-m arcvideo.synthetic --out data`."""
    makes: str
    """File whose existence says that the step is done; written last."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete run: what is prepared, the stages in order, and what they should reach."""

    name: str
    """Name of the pipeline."""
    run_dir: str
    """Where its stages write."""
    about: str = ""
    """One paragraph for whoever runs it."""
    overrides: list[str] = field(default_factory=list)
    """Overrides given to every stage."""
    prepare: list[Preparation] = field(default_factory=list)
    """Steps before the first stage."""
    stages: list[str] = field(default_factory=list)
    """One command line a stage: `stage=sft runner.steps=100`."""
    targets: list[Target] = field(default_factory=list)
    """What the stages should reach; checked at the end."""


def load_recipe(name: str) -> Recipe:
    """The recipe of that name in recipes/, or at that path.

    Raises:
        ValueError: no such recipe, or a key or type that does not fit; the message names it.
    """
    path = Path(name) if name.endswith(".yaml") else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.yaml")))
        raise ValueError(f"recipe={name}: no file {path}; there are: {known}")
    try:
        return filled(Recipe, yaml.safe_load(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def run(recipe: Recipe, *, extra: Sequence[str] = ()) -> bool:
    """Prepare, train every unfinished stage in order, compare with the targets; True when all are met.

    Raises:
        SystemExit: a step failed; its exit status is passed on.
    """
    for step in recipe.prepare:
        if Path(step.makes).exists():
            print(f"[{recipe.name}] {step.name}: there already ({step.makes})", flush=True)
            continue
        print(f"[{recipe.name}] {step.name}: python {step.command}", flush=True)
        started = time.monotonic()
        _call(shlex.split(step.command), what=step.name)
        if not Path(step.makes).exists():
            sys.exit(f"error: preparation {step.name!r} ended without making {step.makes}")
        _remember(recipe, name=step.name, seconds=time.monotonic() - started)
    for line in recipe.stages:
        words = [*recipe.overrides, f"run_dir={recipe.run_dir}", *shlex.split(line), *extra]
        stage = _stage_of(words)
        if finished(Path(recipe.run_dir) / stage):
            print(f"[{recipe.name}] {stage}: finished already", flush=True)
            continue
        print(f"[{recipe.name}] {stage}: python -m arcvideo.train {shlex.join(words)}", flush=True)
        _call(["-m", "arcvideo.train", *words], what=stage)
    return summarise(recipe)


def summarise(recipe: Recipe) -> bool:
    """Write summary.json and the page, print the table; True when every target is met."""
    from arcvideo.report.page import PAGE
    from arcvideo.report.summary import evaluations, print_summary, write_summary

    run_dir = Path(recipe.run_dir)
    stages = [_stage_of(shlex.split(line)) for line in recipe.stages]
    verdicts = judge(recipe.targets, metrics=evaluations(run_dir, stages=stages), run_dir=run_dir)
    summary = write_summary(run_dir, stages=stages, verdicts=verdicts, prepared=_remembered(recipe))
    print_summary(summary, page=run_dir / PAGE)
    return bool(summary["passed"])


def _call(arguments: list[str], *, what: str) -> None:
    """Run python in a process of its own; its failure is ours, with its status."""
    status = subprocess.run([sys.executable, *arguments], check=False).returncode
    if status:
        print(f"error: {what} ended with status {status}; the same command continues from there", file=sys.stderr)
        sys.exit(status if status > 0 else 128 - status)


def _stage_of(words: Sequence[str]) -> str:
    names = [word.removeprefix("stage=") for word in words if word.startswith("stage=")]
    if len(names) != 1:
        raise ValueError(f"a recipe's stage line needs exactly one stage=NAME: {shlex.join(words)}")
    return names[0]


def _remember(recipe: Recipe, *, name: str, seconds: float) -> None:
    path = Path(recipe.run_dir) / "prepared.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**_remembered(recipe), name: round(seconds, 1)}))


def _remembered(recipe: Recipe) -> dict[str, Any]:
    path = Path(recipe.run_dir) / "prepared.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read `recipe=NAME`; all other words are overrides for every stage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print("usage: python -m arcvideo.pipeline recipe=NAME [override ...]   (overrides go to every stage)")
        return
    names = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    if len(names) != 1:
        sys.exit("error: name one recipe: python -m arcvideo.pipeline recipe=tiny_shorts")
    extra = [word for word in words if not word.startswith("recipe=")]
    try:
        recipe = load_recipe(names[0])
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if run(recipe, extra=extra) else 3)


if __name__ == "__main__":
    main()
