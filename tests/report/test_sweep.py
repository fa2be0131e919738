from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arcvideo.composing.sweep import report_sweep
from arcvideo.report.sweep import write_sweep
from arcvideo.seals import write_sealed


def job(folder: Path, number: int, value: float | None, **overrides: str) -> None:
    row: dict[str, Any] = {"folder": f"runs/{number}", "overrides": {"stage": "grpo", **overrides}, "value": value}
    (folder / str(number)).mkdir(parents=True)
    (folder / str(number) / "job.json").write_text(
        json.dumps({**row, "metric": "mcq_accuracy", "direction": "maximize", "metrics": {}, "seconds": 60.0})
    )


def test_jobs_stand_best_first_with_a_plot_of_each_swept_setting(tmp_path: Path) -> None:
    job(tmp_path, 0, 0.25, beta="0.1", kind="k1")
    job(tmp_path, 1, 0.75, beta="0.01", kind="<b>k3</b>")
    job(tmp_path, 2, None, beta="0.5", kind="k1")
    table = write_sweep(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    assert [row["value"] for row in table["jobs"]] == [0.75, 0.25, None]
    assert table["keys"] == ["beta", "kind"]  # stage is the same in all jobs
    assert page.index("runs/1") < page.index("runs/0") < page.index("runs/2")
    assert page.count("<svg") == 2
    assert page.count("<circle") == 4
    assert "&lt;b&gt;k3&lt;/b&gt;" in page
    assert "<b>k3" not in page


def test_a_sweep_without_a_finished_job_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished job"):
        write_sweep(tmp_path)


def test_a_damaged_file_of_a_job_is_a_line_and_the_others_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        job(tmp_path, number, 0.25, beta=str(number))
    (tmp_path / "0" / "job.json").write_text('{"folder": "runs/0", "val')
    (tmp_path / "1" / "job.json").write_text('{"folder": "runs/1"}')
    write_sealed(tmp_path / "2" / "job.json", (tmp_path / "2" / "job.json").read_text())
    (tmp_path / "2" / "job.json").write_text((tmp_path / "2" / "job.json").read_text().replace("0.25", "0.75"))
    assert not report_sweep(tmp_path)
    told = capsys.readouterr()
    assert [line.partition("job.json")[0] for line in told.err.splitlines()] == [
        f"error: {tmp_path}/{number}/" for number in range(3)
    ]
    assert "runs/3" in told.out
