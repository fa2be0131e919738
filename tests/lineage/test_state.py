"""Where a stage stands, compared with what is asked for now."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from arcvideo.lineage import lock
from arcvideo.lineage.lock import agreed, alone_in
from arcvideo.lineage.manifest import Manifest, write_manifest
from arcvideo.lineage.state import State, Wanted, refusal, state_of, write_started

CONFIG: dict[str, Any] = {
    "stage": {"name": "sft", "objective": "next_token"},
    "runner": {"steps": 5, "log_every": 1},
    "evaluation": {"items": 10, "samples": 4},
}
ASKED = Wanted(stage="sft", config=CONFIG, parent="p" * 64, data="d", code={"arcvideo.model.arc_hunyuan.vision": "1"})


def changed(**groups: Any) -> Wanted:
    return dataclasses.replace(ASKED, config={**CONFIG, **groups})


def finish(folder: Path, asked: Wanted = ASKED) -> None:
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "config.json").write_text("{}")
    manifest = Manifest(
        stage="sft", identity=str(asked.identity), parent=asked.parent, parent_path="x", code=asked.code,
        data=str(asked.data), config=asked.config, evaluation=asked.evaluation,
    )  # fmt: skip
    write_manifest(manifest, folder=folder)


def interrupt(folder: Path, *, step: int, asked: Wanted = ASKED) -> None:
    (folder / "checkpoints" / f"step-{step}").mkdir(parents=True)
    (folder / "checkpoints" / f"step-{step}" / "manifest.json").write_text("{}")
    write_started(folder, expected=asked)


def test_a_folder_without_work_is_new(tmp_path: Path) -> None:
    assert state_of(tmp_path / "sft", expected=ASKED).word == "new"
    (tmp_path / "sft").mkdir()
    assert state_of(tmp_path / "sft", expected=ASKED).word == "new"


def test_a_finished_stage_stays_finished_when_only_its_volume_changes(tmp_path: Path) -> None:
    finish(tmp_path)
    assert state_of(tmp_path, expected=ASKED).word == "finished"
    louder = changed(runner={"steps": 5, "log_every": 100}, evaluation={"items": 10, "samples": 9})
    assert state_of(tmp_path, expected=louder).word == "finished"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (changed(runner={"steps": 6, "log_every": 1}), "runner.steps: 5 -> 6"),
        (dataclasses.replace(ASKED, data="e"), "data: other shards, or other content in them"),
        (dataclasses.replace(ASKED, parent="q" * 64), "parent: pppppppp -> qqqqqqqq"),
        (
            dataclasses.replace(ASKED, code={"arcvideo.model.arc_hunyuan.vision": "2"}),
            "code: arcvideo.model.arc_hunyuan.vision",
        ),
    ],
    ids=["settings", "data", "parent", "code"],
)
def test_a_stage_that_was_made_otherwise_is_stale_and_says_why(tmp_path: Path, asked: Wanted, told: str) -> None:
    finish(tmp_path / "done")
    interrupt(tmp_path / "cut", step=3)
    for folder in (tmp_path / "done", tmp_path / "cut"):
        found = state_of(folder, expected=asked)
        assert (found.word, found.reasons) == ("stale", (told,))


def test_another_evaluation_is_measured_again_not_trained_again(tmp_path: Path) -> None:
    finish(tmp_path)
    found = state_of(tmp_path, expected=changed(evaluation={"items": 20, "samples": 4}))
    assert (found.word, found.reasons) == ("unmeasured", ("evaluation.items: 10 -> 20",))


def test_an_interrupted_stage_knows_its_step(tmp_path: Path) -> None:
    interrupt(tmp_path, step=2)
    interrupt(tmp_path, step=14)
    assert (state_of(tmp_path, expected=ASKED).word, state_of(tmp_path, expected=ASKED).step) == ("interrupted", 14)


def test_a_finished_stage_without_its_export_or_its_shards_is_not_trusted(tmp_path: Path) -> None:
    finish(tmp_path)
    assert state_of(tmp_path, expected=dataclasses.replace(ASKED, data=None)).word == "unknown"
    (tmp_path / "export" / "config.json").unlink()
    assert state_of(tmp_path, expected=ASKED).word == "stale"


def _work(folder: Path, log: Path) -> None:
    with alone_in(folder), log.open("a") as file:
        file.write("in ")
        file.flush()
        time.sleep(0.3)
        file.write("out ")


def test_jobs_in_one_folder_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_work, args=(tmp_path / "sft", tmp_path / "log")) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 3
    assert (tmp_path / "log").read_text().split() == ["in", "out"] * 3
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["log", "sft.lock"]'


def test_the_ranks_of_a_job_go_by_the_word_of_its_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_listen, args=(tmp_path / "sft", rank, "a")) for rank in (1, 2)]
    with agreed(tmp_path / "sft", rank=0, job="another", word="new"):
        for other in others:
            other.start()
        with agreed(tmp_path / "sft", rank=0, job="a", word="finished") as word:
            assert word == "finished"
            for other in others:
                other.join()
    assert [other.exitcode for other in others] == [0, 0]


def _listen(folder: Path, rank: int, job: str) -> None:
    with agreed(folder, rank=rank, job=job, word="new") as word:
        assert word == "finished"


def test_a_word_of_an_earlier_launch_is_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its launcher had ended before the one that started this rank began, at the same address."""
    monkeypatch.setattr(lock, "POLL_SECONDS", 0.01)
    (tmp_path / ".sft.word").write_text(json.dumps({"job": "a", "word": "stale"}))
    monkeypatch.setattr(lock, "_launched", lambda: time.time() + 2 * lock.SKEW_SECONDS)
    heard: list[str] = []
    rank = threading.Thread(target=lambda: heard.append(lock._hear(tmp_path / "sft", job="a")), daemon=True)
    rank.start()
    rank.join(0.2)
    assert not heard
    monkeypatch.setattr(lock, "_launched", lambda: 0.0)
    (tmp_path / ".sft.word").write_text(json.dumps({"job": "b", "word": "stale"}))
    later = threading.Thread(target=lambda: heard.append(lock._hear(tmp_path / "sft", job="a")), daemon=True)
    later.start()
    (tmp_path / ".sft.word").write_text(json.dumps({"job": "a", "word": "new"}))
    later.join(30)
    assert heard == ["new"]
    os.utime(tmp_path / ".sft.word", (time.time() + 60, time.time() + 60))
    rank.join(30)
    assert heard == ["new", "new"]


def test_a_launch_began_before_its_ranks() -> None:
    assert 0 < lock._launched() <= time.time()


def test_a_refusal_is_one_line_that_names_another_stage_first_and_the_way_on(tmp_path: Path) -> None:
    reasons = (*(f"data.sources.a{number}: 1 -> 2" for number in range(60)), 'stage.name: "sft" -> "grpo"')
    told = refusal(tmp_path, state=State(word="stale", reasons=reasons))
    assert 'asked for now: stage.name: "sft" -> "grpo"; data.sources.a0' in told
    assert " and 53 more. Give another output=NAME, or remove the folder" in told
    assert len(told) < 500
    interrupt(tmp_path, step=2)
    told = refusal(tmp_path, state=State(word="stale", reasons=("runner.steps: 3 -> 4",)))
    assert f"3 -> 4. Give another output=NAME, with continue_from={tmp_path} to go on" in told
