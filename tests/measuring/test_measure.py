"""Measuring from the command line: what is asked, what is left behind, and that nothing is lost or overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluate import main
from arcvideo.measuring.folder import read_answers, read_card, write_card
from tests.conftest import SmallWorld


def words(world: SmallWorld, out: Path, *more: str) -> list[str]:
    return [
        f"checkpoint={world.base}", f"data={world.data}/test-*.tar", f"out={out}", "name=m", "style=plain",
        "max_new_tokens=4", "bootstrap=20", "device=cpu", *more,
    ]  # fmt: skip


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("answers-*.jsonl")) for line in path.open()]


@pytest.fixture(scope="module")
def arms(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measurement of every arm."""
    out = tmp_path_factory.mktemp("arms")
    assert main(words(small_world, out, "arms=all", "items=3")) == 0
    return out / "m"


def test_every_arm_is_asked_once_and_its_card_says_what_decided_the_answers(arms: Path) -> None:
    card, found = read_card(arms), read_answers(arms)
    asked = [(row["arm"], row["key"]) for row in lines(arms) if "text" in row]
    assert len(asked) == len(set(asked)) == len(found.answers)
    assert {arm for arm, _ in asked} == set(card["settings"]["arms"])
    assert card["proof_of_time"]["frames_show"] == list(range(12))
    assert {"weights", "parser", "decoder", "decoding", "questions"} <= set(card["origin"])
    assert {"prompts", "frame_times"} <= set(card["finished"])
    assert all(clip["frame_times"] for clip in found.clips.values())
    scores = json.loads((arms / "scores.json").read_text())
    assert scores["arms"]["no_sound"]["full_minus_arm"]["mcq_accuracy"]["n"] > 0
    assert sum(scores["needs"].values()) == len((arms / "needs.jsonl").read_text().splitlines())


def test_the_same_command_asks_nothing_again_and_another_is_refused(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(small_world, tmp_path, "tasks=mcq", "items=4", "proof=false")) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").glob("answers-*")}
    assert main(words(small_world, tmp_path, "tasks=mcq", "items=4", "proof=false")) == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "m").glob("answers-*")}
    capsys.readouterr()
    assert main(words(small_world, tmp_path, "tasks=mcq", "items=4", "style=think")) == 2
    assert "holds another measurement" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "m").glob("answers-*")}


def test_what_a_killed_process_left_is_kept_and_the_rest_is_asked(small_world: SmallWorld, tmp_path: Path) -> None:
    command = words(small_world, tmp_path, "tasks=mcq,grounding", "batch_prompts=2", "proof=false")
    assert main(command) == 0
    journal = tmp_path / "m" / "answers-0.jsonl"
    whole = read_answers(tmp_path / "m").answers
    data = journal.read_bytes()
    journal.write_bytes(data[: len(data) // 2])  # in the middle of a line, as kill -9 may leave it
    kept = len(read_answers(tmp_path / "m").answers)
    assert 0 < kept < len(whole)
    assert main(command) == 0
    again = read_answers(tmp_path / "m").answers
    assert {key: answer.text for key, answer in again.items()} == {key: one.text for key, one in whole.items()}
    keys = [(row["arm"], row["key"]) for row in lines(tmp_path / "m") if "text" in row]
    assert len(keys) == len(set(keys))


def test_scores_follow_from_the_answers_without_torch(arms: Path) -> None:
    before = (arms / "scores.json").read_bytes()
    (arms / "scores.json").unlink()
    code = (
        "import sys\nfrom arcvideo.evaluate import main\n"
        f"assert main(['rescore={arms}', 'bootstrap=20']) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (arms / "scores.json").read_bytes() == before


def test_the_same_measurement_with_other_figures_gives_these(small_world: SmallWorld, tmp_path: Path) -> None:
    """A figure that is asked for later is scored from the answers that are there, not passed over."""
    assert main(words(small_world, tmp_path, "tasks=mcq", "proof=false", "metrics=mcq_accuracy")) == 0
    before = (tmp_path / "m" / "scores.json").read_bytes()
    assert main(words(small_world, tmp_path, "tasks=mcq", "proof=false", "metrics=mcq_thought_followed")) == 0
    (other,) = (tmp_path / "m").glob("scores-*.json")
    assert json.loads(other.read_text())["without_items"] == ["mcq_thought_followed"]
    assert (tmp_path / "m" / "scores.json").read_bytes() == before
    assert main(words(small_world, tmp_path, "tasks=mcq", "metrics=speech_qa")) == 2


def test_two_measurements_are_compared_item_by_item_and_different_sets_never(
    arms: Path, small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"compare={arms},{arms}", f"out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "m-minus-m.json").read_text())
    # Alike on every clip, which leaves room for other clips.
    assert all(row["mean"] == 0 and -row["low"] == row["high"] > 0 for row in found["differences"].values())
    assert (tmp_path / "m-minus-m.png").read_bytes().startswith(b"\x89PNG")
    card = json.loads((arms / "card.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    card["origin"]["questions"] = "f" * 64
    del card["seal"]
    write_card(other, card)
    assert main([f"compare={arms},{other}", f"out={tmp_path}"]) == 2
    assert "different questions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("arms=loud", "arms has"),
        ("data=", "data: must"),
        ("metrics=speed", "metrics has"),
        ("checkpoint=none", "no such"),
        ("tasks=mqc", "no question of the tasks mqc (there are: "),
    ],
)
def test_wrong_words_are_told_before_torch(
    word: str, said: str, small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(small_world, tmp_path, word)) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_weights_is_told_with_those_that_it_holds(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for stage in ("sft", "grpo"):
        (run / stage / "export").mkdir(parents=True)
        (run / stage / "export" / "config.json").write_text("{}")
    assert main(words(small_world, tmp_path, f"checkpoint={run}")) == 2
    assert f"holds several stages; name one: {run / 'sft'} (or grpo)" in capsys.readouterr().err
    begun = tmp_path / "begun"
    (begun / "checkpoints").mkdir(parents=True)
    assert main(words(small_world, tmp_path, f"checkpoint={begun}")) == 2
    assert "not finished" in capsys.readouterr().err
    assert main(words(small_world, tmp_path, f"checkpoint={tmp_path}")) == 2
    assert "no weights there" in capsys.readouterr().err


def test_words_that_mean_nothing_are_told_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchs"]) == 2
    assert "did you mean 'benches'?" in capsys.readouterr().err
    assert main(["endpoint=localhost:8000/v1", "model=m", "data=x.tar"]) == 2
    assert "must begin with http:// or https://" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["compare=a,b", f"out={tmp_path}/file/x"]) == 2
    assert "file/x: cannot be written; give another out=DIR" in capsys.readouterr().err
    assert main(["data=/", "checkpoint=/"]) == 2
    assert "bench: must say how data=/ is read" in capsys.readouterr().err
