"""lmms-eval and this package meet: its evaluator with our model and task, and our measurements as its logs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arcvideo.bench import read_bench
from arcvideo.evaluate import main
from arcvideo.measuring.folder import read_answers
from tests.conftest import SmallWorld

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "lmms_eval"
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Set in this process by measuring in it; whoever is started from here is alone."""
DIMENSIONS = ("Affective Intent", "Humor and Meme")


@pytest.fixture(scope="module")
def bench(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TinyShorts' multiple choices in the layout of ShortVid-Bench."""
    folder = tmp_path_factory.mktemp("shortvid")
    rows: list[dict[str, Any]] = []
    for item in read_bench("tinyshorts", small_world.data, media=str(folder / "videos")).items:
        if item.task == "mcq" and len(rows) < 12:
            fields = item.fields
            rows.append({"video": item.clip.name, "question": fields["question"], "candidates": fields["options"],
                         "answer": fields["answer"], "problem_type": DIMENSIONS[len(rows) % 2]})  # fmt: skip
    (folder / "ShortVid-Bench-1k.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def talkative(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights that make its answers differ from question to question."""
    import torch

    from arcvideo.model.disk.loading import load_model
    from arcvideo.processing import ArcVideoProcessor

    folder = tmp_path_factory.mktemp("talkative")
    model: Any = load_model(small_world.base, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "vision" not in name and "speech" not in name:
                weight.mul_(3.0)
    model.save_pretrained(folder)
    ArcVideoProcessor.from_pretrained(small_world.base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def measurement(talkative: Path, bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same questions asked by `arcvideo evaluate`."""
    out = tmp_path_factory.mktemp("evaluations")
    words = [
        f"checkpoint={talkative}", "bench=shortvid-bench", f"data={bench}", f"out={out}", "name=m", "style=think",
        "max_new_tokens=6", "bootstrap=20", "device=cpu", "proof=false",
    ]  # fmt: skip
    assert main(words) == 0
    return out / "m"


def test_a_measurement_is_written_as_lmms_eval_writes_its_logs(measurement: Path, tmp_path: Path) -> None:
    assert main([f"lmms_logs={measurement}", f"out={tmp_path}"]) == 0
    (results,) = tmp_path.rglob("*_results.json")
    (samples,) = tmp_path.rglob("*_samples_m.jsonl")
    assert results.name.removesuffix("_results.json") == samples.name.removesuffix("_samples_m.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    answers = list(read_answers(measurement).answers.values())
    assert [(row["id"], row["filtered_resps"]) for row in rows] == [(one.key, one.text) for one in answers]
    assert [row["doc_id"] for row in rows] == list(range(len(answers)))
    whole = json.loads(results.read_text())
    figures = whole["results"]["m"]
    scores = json.loads((measurement / "scores.json").read_text())
    assert figures["mcq_accuracy_score,none"] == scores["metrics"]["mcq_accuracy"]["value"]
    assert figures["mcq_accuracy_score,none"] == sum(row["mcq_accuracy_score"] for row in rows) / len(rows)
    assert f"mcq_accuracy[dimension:{DIMENSIONS[0]}],none" in figures
    assert whole["n-samples"] == {"m": {"original": len(rows), "effective": len(rows)}}


def test_what_is_no_measurement_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"lmms_logs={tmp_path}", f"out={tmp_path}"]) == 2
    assert "is no measurement" in capsys.readouterr().err


needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms_eval is not installed (pip install lmms-eval==0.7.3)"
)


@pytest.mark.slow
@needs_lmms_eval
def test_lmms_evals_own_evaluator_gets_the_answers_that_evaluate_gets(
    measurement: Path, talkative: Path, bench: Path, tmp_path: Path
) -> None:
    assert main([f"lmms_logs={measurement}", f"out={tmp_path / 'ours'}"]) == 0
    (ours,) = (tmp_path / "ours").rglob("*_samples_m.jsonl")
    env = {
        **{name: value for name, value in os.environ.items() if name not in RANKS},
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(EXAMPLE))),
        "LMMS_EVAL_PLUGINS": "arcvideo_lmms",
        "SHORTVID_BENCH": str(bench),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [
        sys.executable, "-m", "lmms_eval", "--model", "arcvideo", "--device", "cpu", "--batch_size", "64",
        "--model_args", f"pretrained={talkative},style=think,max_new_tokens=6", "--tasks", "shortvid_bench",
        "--include_path", str(EXAMPLE / "arcvideo_lmms" / "tasks"), "--log_samples", "--output_path", str(tmp_path),
        "--baseline", str(ours),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = tmp_path.glob("*/*_samples_shortvid_bench.jsonl")
    (results,) = tmp_path.glob("*/*_results.json")
    theirs = [json.loads(line) for line in samples.read_text().splitlines()]
    answers = read_answers(measurement).answers
    said = {key: answer.text.strip() for (_, key), answer in answers.items()}  # lmms-eval strips answers
    assert len(set(said.values())) > len(said) // 2, "answers so alike would hide a wrong prompt"
    assert {row["mcq_accuracy_score"]["id"]: row["filtered_resps"] for row in theirs} == said
    figures = json.loads(results.read_text())["results"]["shortvid_bench"]
    scores = json.loads((measurement / "scores.json").read_text())
    assert figures["mcq_accuracy_score,none"] == scores["metrics"]["mcq_accuracy"]["value"]
    for tag, rows in scores["tags"].items():
        assert figures[f"mcq_accuracy[{tag}],none"] == rows["mcq_accuracy"]["value"]
    # It read our log, and compared item by item.
    assert figures["paired_baseline_score"] == 100 * figures["mcq_accuracy_score,none"]
    assert figures["paired_ci_lower"] == figures["paired_ci_upper"] == 0


@pytest.mark.slow
@needs_lmms_eval
def test_the_task_reads_answers_as_evaluate_does_and_the_model_gives_other_tasks_the_answer_alone(bench: Path) -> None:
    code = f"""
import os, sys
sys.path[:0] = [{str(EXAMPLE)!r}, {str(EXAMPLE / "arcvideo_lmms/tasks/shortvid_bench")!r}]
os.environ["SHORTVID_BENCH"] = {str(bench)!r}
import utils
from lmms_eval.utils import load_yaml_config
from arcvideo_lmms.models.arcvideo import Request, said

page = utils.__file__.replace("utils.py", "shortvid_bench.yaml")
task = utils.ShortVidBench(config=load_yaml_config(page, mode="full"))
doc = task.test_docs()[0]
right, wrong = doc["answer"], "ABCD".replace(doc["answer"], "")[0]
found = [task.process_results(doc, [text]) for text in
         (f"<think>{{wrong}}</think><answer>{{right}}</answer>", wrong, "no idea", f"{{right}}.")]
assert [one[utils.METRIC]["score"] for one in found] == [1.0, 0.0, 0.0, 1.0], found
assert found[2][utils.METRIC]["problem"]
assert task.aggregation()[f"mcq_accuracy[{{doc['dimensions'][0]}}]"]([one[utils.METRIC] for one in found]) == 0.5

answer = "<think>because</think><answer>B\\n\\nmore</answer>"
asked = dict(number=0, context="?", visuals=(), tokens=1, temperature=0.0, until=("\\n\\n",))
assert said(answer, request=Request(kind=None, **asked)) == "B"
assert said(answer, request=Request(kind="mcq", **(asked | dict(until=())))) == answer
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
