from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from arcvideo.report.page import write_page
from arcvideo.report.records import StageRecord
from arcvideo.report.samples import rollout_examples
from arcvideo.report.summary import evaluations
from arcvideo.seals import write_sealed
from tests.report.runs import NASTY, finish, make_clips, make_run


class Checker(HTMLParser):
    """Collects tags, attributes and text, and that tags close in order."""

    void = frozenset({"meta", "br", "line", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.events: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        self.events += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two finished stages about real clips."""
    folder = tmp_path_factory.mktemp("run")
    finish(make_run(folder), data=make_clips(tmp_path_factory.mktemp("clips")))
    return write_page(folder).read_text()


def test_everything_that_data_or_models_wrote_is_text(whole: str) -> None:
    checker = checked(whole)
    assert not checker.tags & {"script", "link", "answer", "iframe", "object"}
    assert not checker.events
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in checker.links)
    assert checker.text.count(NASTY) >= 3  # a question, an answer, a quarantined key: shown as it stands


def test_the_page_has_the_tree_the_proofs_the_data_and_the_differences(whole: str) -> None:
    text = " ".join(" ".join(checked(whole).text).split())
    assert "measured without targets" in text
    assert "[0.55, 0.67] n 200" in text
    assert whole.index("<b>sft</b>") < whole.index("<b>grpo</b>")  # the parent first
    assert "runs/base" in text
    assert "gradient 0.5" in text
    assert "frozen" in text
    assert "changed" not in text
    assert "video zeroed" in text
    assert "corrupt" in text
    assert "1 setting differs from its parent's" in text
    assert "nan" not in text


def test_frames_and_spans_of_a_real_clip_are_drawn(whole: str) -> None:
    assert whole.count("data:image/jpeg;base64,") == 3  # one a second
    assert 'aria-label="loudness"' in whole
    truth, predicted = (
        'class="truth" style="left:33.3%;width:33.3%"',
        'class="predicted" style="left:33.3%;width:66.7%"',
    )
    assert truth in whole
    assert predicted in whole


def test_a_frozen_module_that_changed_is_told(tmp_path: Path) -> None:
    finish(make_run(tmp_path), data=tmp_path)
    path = tmp_path / "sft" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "frozen_after": {"vit": "d" * 64}}))
    assert '<span class="bad">changed</span>' in write_page(tmp_path).read_text()


def test_clips_that_are_gone_are_said_to_be_gone(tmp_path: Path) -> None:
    finish(make_run(tmp_path), data=tmp_path / "nowhere")
    page = write_page(tmp_path).read_text()
    assert "data:image" not in page
    assert "not in an indexed shard any more" in page


def test_stages_from_one_parent_are_set_off_from_each_other(tmp_path: Path) -> None:
    finish(make_run(tmp_path), data=tmp_path)
    path = tmp_path / "grpo" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "parent": "0" * 64, "parent_path": "runs/base"}))
    page = write_page(tmp_path).read_text()
    assert page.count('<li style="margin-left:22px"') == 2
    assert page.count("from runs/base") >= 1


def test_a_pipeline_that_still_runs_has_a_page(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    page = write_page(tmp_path).read_text()
    checked(page)
    assert "Not finished" in page
    assert "at step 10" in page
    assert page.count("<svg") == 4


def test_figures_that_were_changed_since_they_were_written_are_told_and_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run / "sft" / "evaluation.json"
    write_sealed(path, path.read_text())
    path.write_text(path.read_text().replace("0.61", "0.91"))
    with pytest.raises(ValueError, match=r"sft/evaluation.json: is not the file of"):
        evaluations(run, stages=["sft"])
    page = write_page(run).read_text()
    assert "evaluation.json: is not the file of evaluation.json.sha256" in page
    assert "0.91" not in page


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train a stage first"):
        write_page(tmp_path)
    made = subprocess.run(
        [sys.executable, "-m", "arcvideo.report", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 1
    assert made.stderr.startswith("error:")
    assert "Traceback" not in made.stderr


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """A link to itself refuses everybody, root included."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sft").symlink_to("sft")
    with pytest.raises(ValueError, match=r"run: nothing there can be read \(sft: Too many levels of symbolic links\)"):
        write_page(tmp_path / "run")
    with pytest.raises(OSError, match="Too many levels"):
        write_page(tmp_path / "run" / "sft")
    run = make_run(tmp_path)
    (run / "grpo_again").symlink_to("grpo_again")
    assert "grpo_again: Too many levels of symbolic links" in write_page(run).read_text()


def test_two_prompts_of_a_step_with_one_key_are_two_groups() -> None:
    rows = [
        {
            "step": 0, "key": "clip/0", "place": place, "task": "mcq", "question": question, "truth": {"letter": "A"},
            "completion": text, "rewards": {"format": 1.0}, "advantage": 0.0,
        }
        for place, question in ((0, "first question"), (1, "second question"))
        for text in ("A", "B")
    ]  # fmt: skip
    examples = rollout_examples(StageRecord(name="grpo", rollouts=rows))
    assert [example.questions[0].text for example in examples] == ["first question", "second question"]
    assert all(answer.label.endswith("of 2") for example in examples for answer in example.questions[0].answers)


def measurement(folder: Path, **changes: Any) -> None:
    """A measurement as `arcvideo evaluate out=RUN/evaluations` leaves it."""
    published = {"bench": "mvbench", "model": "Somebody-7B", "thinks": True, "metric": "mcq_accuracy", "value": 62.9,
                 "source": "a paper, table 1"}  # fmt: skip
    marks = {"task": "brief summary", "model": "Somebody-7B", "marks": [18, 4, 78], "passed": 0.82,
             "better": [16, 4, 80], "source": "a paper, table 2"}  # fmt: skip
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "chance": 0.25, "n": 200}
    scores = {"name": NASTY, "bench": "mvbench", "asked": 190, "questions": 200, "metrics": {"mcq_accuracy": figure},
              "published": [published], "marked": [marks], **changes}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "card.json").write_text(json.dumps({"checkpoint": "runs/x/sft"}))


def test_measurements_below_a_run_stand_beside_what_is_published_with_its_source(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    measurement(run / "evaluations" / "a")
    text = " ".join(" ".join(checked(write_page(run).read_text()).text).split())
    assert "runs/x/sft" in text
    assert "190 of 200 questions asked" in text
    assert "Somebody-7B (thinks) 62.9" in text
    assert "brief summary Somebody-7B 18 / 4 / 78 0.82 16 / 4 / 80" in text
    assert "Source: a paper, table 1; a paper, table 2" in text
    assert NASTY in text


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"mcq_accuracy": None}},
        {"metrics": []},
        {"marked": [{"task": "x"}]},
        {"published": 3},
        {"asked": {}},
    ],
    ids=str,
)
def test_a_measurement_of_another_shape_is_named_and_the_rest_is_shown(changes: dict[str, Any], tmp_path: Path) -> None:
    run = make_run(tmp_path)
    measurement(run / "evaluations" / "a")
    measurement(run / "evaluations" / "b", **changes)
    text = " ".join(checked(write_page(run).read_text()).text)
    assert "evaluations/b" in text
    assert text.count("190 of 200 questions asked") == 1
