"""Kill whole pipelines at random instants: `python -m tests.runner.torture_pipeline --kills 50`.

A recipe of tiny sizes makes clips, indexes and base weights, trains, samples and trains with GRPO (with refills),
exports, measures and writes its report; a sweep behind it trains the parent that its jobs share. All of it runs as a
user starts it, in processes of its own. They are killed with SIGKILL, at any instant or just when something new lies on
the disk: the process on top, one of those below it, or all at once. After every kill nothing may be left running, and
the same command goes on. At the end the accounting and the bits of everything written equal those of a run that nobody
touched. The code must not change meanwhile: a stage that was begun with another one is refused, as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from arcvideo.files import read_lines
from tests.runner.job import ROOT

MARK = "ARCVIDEO_TORTURE"
"""Environment variable by which all that a command has started is found again, whoever its parent is now."""
SHARE = 0.15
"""A command is killed within this share of the time that an undisturbed run takes: kills come in every part."""
MORE = 1.5
"""A command is killed within this share of the time of an undisturbed run, so that some kills come in every part."""
PATIENCE = 120.0
"""Seconds in which everything below a killed command has to end."""
AIMED = 0.6
"""Share of the kills that come when something new lies on the disk."""
TIMED = ("time/", "memory/", "speed/", "rollout/seconds", "rollout/tokens_per_second", "seconds")
"""Beginnings of the keys that a clock or the machine decides."""
TINY = {
    "model": "tiny",
    "data_dir": "data",
    "base": "run/base",
    "threads": 1,
    "data": {"token_budget": 1024, "workers": 1},
    "runner": {"log_every": 1, "save_every": 1, "liveness_scan": 1},
    "schedule": {"warmup_steps": 1},
    "evaluation": {"items": 6, "max_new_tokens": 4, "bootstrap": 20},
}
GRPO = {
    "num_generations": 2, "num_prompts": 2, "prompts_per_batch": 2, "max_completion_length": 6, "num_iterations": 2,
    "drop_zero_variance": True, "max_refills": 2, "require_reward_spread": False,
    "task_rewards": {task: {"tests.runner.torture_rewards:drawn": 1.0} for task in ("mcq", "grounding", "asr", "qa")},
}  # fmt: skip


def recipe(*, ranks: int) -> dict[str, Any]:
    """The recipe of the pipeline; with several ranks the engine and the packs of a step are for them."""
    settings = json.loads(json.dumps(TINY))
    if ranks > 1:
        settings |= {"engine": "zero2", "optimizer": {"name": "adamw"}}
        settings["data"] |= {"packs_per_step": ranks}
    base = "-m arcvideo.synthetic.base --data data --out run/base --features run/features --threads 1 --workers 1"
    return {
        "name": "torture",
        "run_dir": "run",
        "settings": settings,
        "prepare": [
            {"name": "data", "makes": "data/dataset.json",
             "command": "-m arcvideo.synthetic --out data --clips 12 --test-clips 6 --texts 6 --seed 1 --workers 2"},
            {"name": "index", "makes": "data/train-000000.tar.index/meta.json",
             "command": "-m arcvideo.data.shards index data/train-000000.tar data/test-000000.tar"},
            {"name": "base", "makes": "run/base/base.json",
             "command": f"{base} --vision-steps 3 --audio-steps 3 --language-steps 3"},
        ],
        "stages": [
            {"stage": "sft", "parent": "run/base", "runner": {"steps": 4}},
            {"stage": "grpo", "stage.parent": "sft", "runner": {"steps": 4},
             "grpo": GRPO},
        ],
    }  # fmt: skip


def commands(*, ranks: int) -> list[list[str]]:
    """What is run, one after the other; each goes on where it was killed."""
    pipeline = [sys.executable, "-m", "arcvideo.pipeline", "recipe=recipe.yaml"]
    if ranks > 1:
        return [pipeline]
    words = ["data_dir=data", "base=run/base", "run_dir=swept", "threads=1", "data.token_budget=1024"]
    words += ["data.workers=1", "runner.save_every=1", "runner.liveness_scan=1", "evaluation.shards=''"]
    words += ["evaluation.optimize=train/loss", "runner.steps=3", "parents.runner.steps=3", "runner.seed=0,1"]
    return [pipeline, [sys.executable, "-m", "arcvideo.train", "-m", "stage=pretrain", *words]]


@dataclass(kw_only=True)
class Outcome:
    """What the killing came to."""

    kills: int = 0
    rounds: int = 0
    """Pipelines that were brought to their end and compared."""
    slowest: float = 0.0
    """Seconds until the last process below a killed command had ended."""
    longest: float = 0.0
    """Seconds within which a command is killed."""
    during: dict[str, int] = field(default_factory=dict)
    """What was the newest thing on the disk at a kill -> how often."""


def descended(mark: str) -> list[int]:
    """Processes that carry the mark and live, oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if f"{MARK}={mark}".encode() not in _environment(path):
                continue
            if (path / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(int(path.name))
    return sorted(found)


def _environment(process: Path) -> list[bytes]:
    """Variables of a process; one that is just becoming another program has none for a moment."""
    for _ in range(20):
        if variables := (process / "environ").read_bytes():
            return variables.split(b"\0")
        (process / "exe").readlink()  # a thread of the kernel has none, and never variables
        time.sleep(0.005)
    return []


def started(command: list[str], *, folder: Path, mark: str, ranks: int) -> subprocess.Popen[bytes]:
    """The command in its folder, its words appended to said.txt there."""
    environment = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        environment["ARCVIDEO_LAUNCHER"] = " ".join(agent)
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def there(folder: Path) -> set[str]:
    """Everything that lies in a folder, temporary files too."""
    found = set()
    for place, folders, files in os.walk(folder):
        found |= {os.path.join(place, name) for name in (*folders, *files)}
    return found


def wait(process: subprocess.Popen[bytes], *, folder: Path, chance: random.Random, longest: float) -> str:
    """Wait for the instant of a kill, or for the end of the command; returns the newest thing on the disk."""
    limit = time.monotonic() + chance.random() * longest
    aimed, before, left = chance.random() < AIMED, there(folder), chance.randrange(1, 30)
    while process.poll() is None and time.monotonic() < limit:
        if aimed:
            new = sorted(there(folder) - before)
            if len(new) >= left:
                time.sleep(chance.random() * 0.1)
                return os.path.relpath(new[-1], folder)
        time.sleep(0.01)
    return "any instant"


def kill(process: subprocess.Popen[bytes], *, mark: str, chance: random.Random) -> None:
    """Kill the process on top, one below it, or all."""
    family = [number for number in descended(mark) if number != process.pid]
    how = chance.choice(["top", "one", "all"])
    victims = [process.pid] if how == "top" or not family else [chance.choice(family)]
    for number in victims if how != "all" else [process.pid, *family]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def attempt(folder: Path, *, outcome: Outcome, chance: random.Random | None, ranks: int, kills: int) -> None:
    """Bring everything to its end in a folder; without a `chance` nobody is killed.

    Raises:
        AssertionError: a command failed by itself, or left a process behind.
    """
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(ranks=ranks)))
    mark, longest, finished = uuid.uuid4().hex, outcome.longest, -1
    for command in commands(ranks=ranks):
        while True:
            process = started(command, folder=folder, mark=mark, ranks=ranks)
            killed = False
            try:
                if chance is not None and outcome.kills < kills:
                    longest = longest * MORE if finished == len(_kept(folder)) else outcome.longest
                    finished = len(_kept(folder))
                    newest = wait(process, folder=folder, chance=chance, longest=longest)
                    if process.poll() is None:
                        kill(process, mark=mark, chance=chance)
                        killed, outcome.kills = True, outcome.kills + 1
                        kind = newest.split(os.sep)[1] if newest.count(os.sep) else newest
                        outcome.during[kind] = outcome.during.get(kind, 0) + 1
                # Whoever was killed below the top ends it, too, or its work is done again without a word.
                process.wait(timeout=900)
                began = time.monotonic()
                while (left := descended(mark)) and time.monotonic() - began < PATIENCE:
                    time.sleep(0.05)
                names = [Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ") for number in left]
                assert not left, f"kill {outcome.kills}: left behind after {PATIENCE:g} s: {names}"
                outcome.slowest = max(outcome.slowest, time.monotonic() - began)
            finally:
                for number in descended(mark):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                process.wait()
            if process.returncode == 0:
                break
            said = (folder / "said.txt").read_text(errors="replace")[-3000:]
            assert killed, f"after kill {outcome.kills} {command[2:4]} ended with {process.returncode}:\n{said}"


def _kept(folder: Path) -> list[Path]:
    """What a command that goes on does not make again."""
    names = ("dataset.json", "meta.json", "base.json", "manifest.json")
    return [path for name in names for path in folder.rglob(name) if ".tmp-" not in path.parent.name]


def facts(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on kills: bits of weights and data, books, figures, rows."""
    found: dict[str, Any] = {}
    for path in sorted([*folder.glob("data/*.tar"), *folder.glob("run/base/*.safetensors")]):
        found[str(path.relative_to(folder))] = _digest(path)
    for manifest in sorted(folder.glob("*/**/manifest.json")):
        stage = manifest.parent
        if stage.parent.name == "checkpoints":
            continue
        name = str(stage.relative_to(folder))
        told = json.loads(manifest.read_text())
        for key in ("identity", "parent", "seen", "quarantined", "steps", "skipped", "frozen_before", "frozen_after"):
            found[f"{name}: {key}"] = told[key]
        found[f"{name}: books"] = {source: row.get("books") for source, row in told["mixture"].items()}
        found[f"{name}: metrics"] = _untimed(told["metrics"])
        for path in sorted(stage.glob("export/*.safetensors")):
            found[f"{name}: {path.name}"] = _digest(path)
        for file in ("metrics.jsonl", "rollouts.jsonl", "predictions.jsonl", "quarantine.jsonl"):
            if (stage / file).exists():
                found[f"{name}: {file}"] = [_untimed(row) for row in read_lines(stage / file)]
    for job in folder.glob("swept/sweeps/*/*/job.json"):
        row = json.loads(job.read_text())
        if not row["error"]:
            found[f"job {row['overrides']['runner.seed']}"] = row["value"]
    found["report"] = [path.name for path in sorted(folder.glob("run/*.html"))]
    summary = folder / "run" / "summary.json"
    if summary.exists():
        found["summary"] = _untimed(json.loads(summary.read_text()))
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _untimed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _untimed(one) for key, one in value.items() if not str(key).removeprefix("train/").startswith(TIMED)
        }
    return [_untimed(one) for one in value] if isinstance(value, list) else value


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What is not equal, a line each."""
    for key in sorted({*one, *other}):
        if one.get(key) != other.get(key):
            yield f"{key}: {str(one.get(key))[:300]} without kills, {str(other.get(key))[:300]} with them"


def torture(root: Path, *, kills: int, seed: int, ranks: int = 1, minutes: float = 1e9) -> Outcome:
    """Kill so many times over as many pipelines as it takes, each brought to its end and compared.

    Args:
        root: folder for all runs; an undisturbed one of before that lies there is compared with.
        kills: how many.
        seed: of the instants.
        ranks: of every stage.
        minutes: no kills after so many; the pipeline under way is still brought to its end.

    Raises:
        AssertionError: something was lost, changed or left running; the message says what.
    """
    chance, outcome, limit = random.Random(seed), Outcome(), time.monotonic() + 60 * minutes
    note = root / "straight.json"
    if not note.exists():
        began = time.monotonic()
        attempt(root / "straight", outcome=outcome, chance=None, ranks=ranks, kills=0)
        note.write_text(json.dumps({"seconds": time.monotonic() - began, "facts": facts(root / "straight")}))
    told = json.loads(note.read_text())
    straight, outcome.longest = told["facts"], SHARE * told["seconds"]
    while outcome.kills < kills and time.monotonic() < limit:
        folder = root / f"killed-{outcome.rounds}"
        attempt(folder, outcome=outcome, chance=chance, ranks=ranks, kills=kills)
        found = list(differences(straight, json.loads(json.dumps(facts(folder)))))
        assert not found, f"round {outcome.rounds}: " + "\n".join(found)
        outcome.rounds += 1
        shutil.rmtree(folder)
    return outcome


def main() -> None:
    """Print what came of it; exit status 1 when something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="no new round after so many")
    parser.add_argument("--root", type=Path, help="folder for the runs, kept; has the undisturbed one of before")
    options = parser.parse_args()
    root = options.root or Path(tempfile.mkdtemp(prefix="torture-"))
    root.mkdir(exist_ok=True)
    began = time.monotonic()
    try:
        done = torture(root, kills=options.kills, seed=options.seed, ranks=options.ranks, minutes=options.minutes)
    except AssertionError as error:
        sys.exit(f"failed: {error}; the runs are in {root}")
    if options.root is None:
        shutil.rmtree(root)
    where = ", ".join(f"{count} {name}" for name, count in sorted(done.during.items(), key=lambda pair: -pair[1]))
    print(
        f"{done.kills} kills of {done.rounds} pipelines ({options.ranks} ranks) in {time.monotonic() - began:.0f} s, "
        f"at {where}: nothing was left running for longer than {done.slowest:.1f} s; books, figures and bits are those "
        "of an undisturbed run"
    )


if __name__ == "__main__":
    main()
