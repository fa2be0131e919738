"""Published figures: of the right set, with their source, and in the table of the documentation."""

from __future__ import annotations

from pathlib import Path

from arcvideo.bench import BENCHES
from arcvideo.bench.published import FREE, MARKED, PUBLISHED, marked, marked_table, published, published_table
from arcvideo.evaluation.settings import metric_names
from arcvideo.tasks import TASKS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def test_figures_belong_to_benchmarks_and_metrics_that_there_are() -> None:
    known = {reader.published for reader in BENCHES.values() if reader.published}
    assert {row.bench for row in PUBLISHED} <= {f"{name}{size}" for name in known for size in ("", "-400", "-1000")}
    assert all(any(row.bench.startswith(name) for row in PUBLISHED) for name in known)
    assert {row.metric for row in PUBLISHED} <= set(metric_names())
    assert all(row.source for row in PUBLISHED)


def test_the_two_sizes_of_shortvid_bench_do_not_share_figures() -> None:
    paper, release = published("shortvid-bench-400"), published("shortvid-bench-1000")
    assert [row.value for row in paper] == [67.8, 68.3, 53.5, 74.3]
    assert [row.value for row in release] == [69.3, 69.7, 56.3, 73.0]
    assert {row.source for row in paper} != {row.source for row in release}
    assert published("shortvid-bench-12") == []
    assert published_table("shortvid-bench-12") == ""


def test_a_table_names_models_figures_and_source() -> None:
    table = published_table("charades-sta")
    assert "grounding_miou" in table
    assert "ARC-Hunyuan-Video-7B     54.8  thinks" in table
    assert table.count("arXiv 2507.20939, table 1") == 4


def test_marks_add_up_to_their_hundred_answers() -> None:
    for row in MARKED:
        assert sum(row.marks) == 100
        assert row.passed == (row.marks[1] + row.marks[2]) / 100
        assert row.better is None or sum(row.better) == 100


def test_marks_stand_beside_figures_of_summaries_with_their_source_and_nowhere_else() -> None:
    assert set(FREE) <= set(TASKS)
    assert marked(["mcq", "grounding"]) == []
    assert marked_table(["mcq"]) == ""
    ours = {"one": {"summary_f1": 0.5, "mcq_accuracy": 0.9, "my_judge:mark": 1.25}, "two": {"summary_f1": 0.25}}
    lines = marked_table(["mcq", "summary"], ours=ours).splitlines()
    assert [line.split() for line in lines[2:5]] == [
        ["one", "summary_f1", "0.50"], ["one", "my_judge:mark", "1.25"], ["two", "summary_f1", "0.25"],
    ]  # fmt: skip
    assert len(lines) == 5 + len(MARKED)
    assert all(line.endswith("arXiv 2507.20939, table 2") for line in lines[5:])
    assert "18/4/78   0.82  16/4/80" in lines[6]


def test_the_documentation_shows_the_same_figures() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for bench in {row.bench for row in PUBLISHED}:
        values = " | ".join(f"{row.value:.1f}" for row in published(bench))
        assert f"| `{bench}` | {values} |" in text
    for row in MARKED:
        better = " / ".join(map(str, row.better)) if row.better else ""
        cells = (row.task, row.model, " / ".join(map(str, row.marks)), f"{row.passed:.2f}", better)
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in text
    for name, reader in BENCHES.items():
        assert f"| `{name}` |" in text, f"{name} is not on the page"
        assert all(f"`{option}=" in text for option in reader.options), f"an option of {name} is not on the page"
