"""Rejection sampling from a checkpoint to shards that a stage trains on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arcvideo.lineage.manifest import read_manifest
from arcvideo.lineage.parents import resolve_parent
from arcvideo.rejection.journal import Journal, read_answers
from arcvideo.rejection.sample import main
from arcvideo.rejection.selection import Drawn, items_of, kept, passing, summary
from arcvideo.sampling.settings import SampleSettings
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ensure_indexes
from arcvideo.stage import run_stage
from tests.compose import settings as stage_settings
from tests.conftest import SmallWorld

GOOD, ALSO, BAD = (f"<think>{thought}</think><answer>{answer}</answer>" for thought, answer in ("aA", "bA", "cB"))
SPAN = "<think>seen</think><answer>00:00:02 - 00:00:05</answer>"


def settings(**changes: Any) -> SampleSettings:
    return SampleSettings(checkpoint=".", shards="x.tar", out="out", **changes)


def drawn(*texts: str, scores: Sequence[float | None], task: str = "mcq", answer: str = GOOD) -> Drawn:
    return Drawn(
        key="clip/0", task=task, answer=answer, texts=list(texts), finished=[True] * len(texts), scores=list(scores)
    )


def test_what_passes_is_right_whole_and_in_the_format() -> None:
    row = drawn(GOOD, "A", BAD, GOOD, scores=[1.0, 1.0, 0.0, 1.0])
    assert passing(row, settings=settings()) == [0, 3]
    assert passing(row, settings=settings(require_format=False)) == [0, 1, 3]
    empty = drawn("<think> </think><answer>A</answer>", scores=[1.0])
    assert (passing(empty, settings=settings()), passing(empty, settings=settings(style="plain"))) == ([], [0])
    assert passing(replace(row, finished=[False, True, True, True]), settings=settings()) == [3]
    overlap = drawn(SPAN, SPAN, scores=[0.6, 0.61], task="grounding")
    assert passing(overlap, settings=settings()) == [1]  # above 0.6, as the paper says
    assert passing(overlap, settings=settings(above={"grounding": 0.5})) == [0, 1]


def test_at_most_k_different_answers_are_kept_the_first_or_the_best() -> None:
    row = drawn(GOOD, GOOD, ALSO, scores=[0.8, 0.8, 0.9])
    assert kept(row, settings=settings(keep=8)) == [0, 2]
    assert kept(row, settings=settings(keep=1)) == [0]
    assert kept(row, settings=settings(keep=1, prefer="best")) == [2]


def test_items_carry_what_was_drawn_beside_the_truth() -> None:
    item = {"task": "grounding", "question": "when?", "span": [2, 6], "think": "old", "draft": "old"}
    (made,) = items_of(drawn(SPAN, scores=[0.75], task="grounding"), item=item, settings=settings())
    assert made == {
        "task": "grounding",
        "question": "when?",
        "span": [2, 6],
        "think": "seen",
        "draft": "00:00:02 - 00:00:05",
        "drawn": {"number": 0, "score": 0.75},
    }
    choice = {"task": "mcq", "question": "?", "options": ["a", "b"], "answer": "A", "draft": {"options": ["b", "a"]}}
    (made,) = items_of(drawn(GOOD, scores=[1.0]), item=choice, settings=settings())
    assert (made["think"], made["answer"], "draft" in made) == ("a", "A", False)


def test_pairs_join_a_kept_answer_with_a_failed_one_or_the_truth_with_a_worse_one() -> None:
    item = {"task": "mcq", "answer": "A", "think": "own"}
    row = drawn(BAD, GOOD, scores=[0.0, 1.0])
    (sampled,) = items_of(row, item=item, settings=settings(pairs="sampled"))
    assert (sampled["think"], sampled["rejected"]) == ("a", BAD)
    (truth,) = items_of(row, item=item, settings=settings(pairs="truth"))
    assert truth == {**item, "rejected": BAD}
    assert items_of(drawn(GOOD, ALSO, scores=[1.0, 1.0]), item=item, settings=settings(pairs="truth")) == []
    assert items_of(drawn(BAD, scores=[0.0]), item=item, settings=settings(pairs="sampled")) == []
    told = drawn("a cat", "a dog", scores=[None, None], task="summary", answer="a cat")
    (described,) = items_of(told, item={"answer": "a cat"}, settings=settings(pairs="truth", tasks=["summary"]))
    assert described["rejected"] == "a dog"


def test_the_summary_counts_questions_answers_and_rewards() -> None:
    rows = [drawn(GOOD, BAD, scores=[1.0, 0.0]), replace(drawn(BAD, "no", scores=[0.0, 0.0]), key="clip/1")]
    found = summary(rows, settings=settings(num_generations=2))["mcq"]
    assert (found["questions"], found["answers"], found["passed"], found["questions_kept"]) == (2, 4, 0.25, 0.5)
    assert found["passing_answers_of_a_question"] == [1, 1, 0]
    assert found["reward_histogram"] == [3, *[0] * 8, 1]
    assert found["format_valid"] == 0.75


def test_a_journal_forgets_a_half_line_and_refuses_answers_drawn_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.answers.jsonl"
    with Journal(path, origin={"seed": 0}) as journal:
        journal.add([drawn(GOOD, scores=[1.0])])
    with path.open("a") as file:
        file.write('{"key": "clip/1", "te')
    with Journal(path, origin={"seed": 0}) as journal:
        assert list(journal.answers.rows) == ["clip/0"]
        journal.lose(["clip/2"], reason="corrupt")
    assert read_answers(path).lost == {"clip/2": "corrupt"}
    with pytest.raises(ValueError, match=r"drawn otherwise: seed \(0 there, 1 now\)"):
        Journal(path, origin={"seed": 1})


def by_length(completions: list[str], **columns: Any) -> list[float]:
    """Any other measure an untrained model sometimes meets."""
    return [float(len(text) % 2) for text in completions]


def words(world: SmallWorld, out: Path, *more: str) -> list[str]:
    return [
        f"checkpoint={world.base}",
        f"shards={world.data}/train-*.tar",
        f"out={out}",
        f"features={world.features}",
        "rewards.mcq=tests.rejection.test_sample:by_length",
        "rewards.grounding=tests.rejection.test_sample:by_length",
        "require_format=false",
        "num_generations=3",
        "keep=2",
        "max_new_tokens=24",
        "stop=e,a",
        "temperature=2",
        "max_clips=5",
        "clips_per_shard=3",
        "items_per_clip=3",
        *more,
    ]


def answers_of(out: Path) -> list[str]:
    return [line for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines() if "texts" in line]


def test_sampled_shards_are_reproducible_resumable_and_trained_on(small_world: SmallWorld, tmp_path: Path) -> None:
    out = tmp_path / "whole"
    assert main(words(small_world, out)) == 0
    shards = sorted(out.glob("sampled-*.tar"))
    assert [path.name for path in shards] == ["sampled-000000.tar", "sampled-000001.tar"]
    found = json.loads((out / "sampled.summary.json").read_text())
    written = sum(row["items_written"] for row in found["tasks"].values())
    assert written > 0
    _media_are_untouched(small_world, out, items=written)

    part = tmp_path / "part"  # stopped within a shard, then continued in smaller batches
    assert main(words(small_world, part, "max_clips=5")) == 0
    first = part / "sampled-000000.answers.jsonl"
    first.write_text("".join(line + "\n" for line in first.read_text().splitlines()[:3]))
    for path in part.glob("*.tar"):
        path.unlink()
    assert main(words(small_world, part, "batch_prompts=1")) == 0
    assert sorted(answers_of(part)) == sorted(answers_of(out))
    assert (part / shards[0].name).read_bytes() == shards[0].read_bytes()

    config = stage_settings(
        "stage=final_sft",
        *small_world.overrides,
        f"run_dir={tmp_path / 'run'}",
        f"data.sources.sampled.shards={out}/sampled-*.tar",
        "data.sources.sampled.style=plain",  # an untrained model does not reason
        "data.sources.tiny_shorts=null",
        "data.sources.text=null",
        "runner.liveness=false",
        "evaluation.shards=",
    )
    parent = resolve_parent(run_dir=tmp_path, stage="final_sft", parent="", override=small_world.base)
    run_stage(config, parent=parent)
    assert read_manifest(config.stage_dir).seen["sampled"] > 0


def _media_are_untouched(world: SmallWorld, out: Path, *, items: int) -> None:
    originals = {
        index.key(row): index.media_bytes(row)
        for index in ensure_indexes(expand_shards(f"{world.data}/train-*.tar"))
        for row in range(len(index.clips))
    }
    indexes = ensure_indexes(expand_shards(f"{out}/sampled-*.tar"))
    assert sum(len(index.items) for index in indexes) == items
    for index in indexes:
        assert index.problems() == []
        for row in range(len(index.clips)):
            assert index.media_bytes(row) == originals[index.key(row)]
            assert all(item["drawn"]["score"] == 1.0 for item in index.record(row)["items"])


def test_ranks_share_the_shards_and_other_bounds_choose_without_drawing(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ranks"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main(words(small_world, out)) == 0
    assert "this rank is done" in capsys.readouterr().out
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    before, kept_two = answers_of(out), json.loads((out / "sampled.summary.json").read_text())
    assert main(words(small_world, out, "keep=1")) == 0
    assert answers_of(out) == before
    kept_one = json.loads((out / "sampled.summary.json").read_text())
    for task, row in kept_one["tasks"].items():
        assert row["items_written"] <= kept_two["tasks"][task]["items_written"]
        assert row["passed"] == kept_two["tasks"][task]["passed"]
    assert main(words(small_world, out, "seed=1")) == 2
    assert "seed (0 there, 1 now); give another out= or name=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("checkpoint=nowhere", "checkpoint=nowhere: no such directory"),
        ("shards=nowhere/*.tar", "shards='nowhere/*.tar': no such tar file"),
        ("tasks=qa", "rewards.qa=package.module:function"),
        ("tasks=mqc", "rewards.mqc"),
        ("rewards.mcq=nothing", "rewards.mcq"),
        ("temperature=0", "greedy answers are all the same"),
        ("keeps=2", "did you mean 'keep'"),
        ("keep=two", "keep: expected a whole number"),
        ("above=0.5", "above.NAME=0.5"),
        ("pairs=both", "pairs=both: choose one of none, sampled, truth"),
    ],
)
def test_a_mistake_is_one_line(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, told: str
) -> None:
    given = words(small_world, tmp_path / "out", word)
    kept_words = {text.partition("=")[0]: text for text in given}  # the last one counts
    assert main(list(kept_words.values())) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert told in said[-1]
