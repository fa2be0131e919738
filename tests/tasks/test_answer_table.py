"""docs/answers.md says what is read; every row of its tables is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arcvideo.tasks.answers import one_answer
from arcvideo.tasks.mcq import read_letter
from arcvideo.tasks.spans import read_span

PAGE = Path(__file__).resolve().parents[2] / "docs" / "answers.md"
OPTIONS = ["a cat", "a dog", "a bird", "a cow"]


def rows(heading: str) -> list[tuple[str, str]]:
    """Return (text, what the page says of it) of the first table under a heading; ⏎ is the end of a line."""
    section = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(heading)]
    found = re.findall(r"^\| `([^`]+)` \| (.+) \|$", text, flags=re.MULTILINE)
    return [(said.replace("⏎", "\n"), meant.replace("`", "")) for said, meant in found]


def test_the_tables_are_found() -> None:
    counts = [len(rows(heading)) for heading in ("Where the answer is", "An option", "A time span")]
    assert all(count > 15 for count in counts)
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == sum(counts), "a row that no test reads"


def agrees(reading_problem: str | None, meant: str) -> bool:
    """Whether nothing was read, for the reason that the page gives."""
    return reading_problem is not None and meant.removeprefix("none: ") in reading_problem


@pytest.mark.parametrize(("text", "meant"), rows("Where the answer is"))
def test_where_the_answer_is(text: str, meant: str) -> None:
    read = one_answer(text)
    assert agrees(read.problem, meant) if meant.startswith("none") else read.value == meant


@pytest.mark.parametrize(("text", "meant"), rows("An option"))
def test_options_are_read_as_the_page_says(text: str, meant: str) -> None:
    read = read_letter(text, options=OPTIONS)
    assert agrees(read.problem, meant) if meant.startswith("none") else read.value == meant


@pytest.mark.parametrize(("text", "meant"), rows("A time span"))
def test_spans_are_read_as_the_page_says(text: str, meant: str) -> None:
    read = read_span(text)
    if meant.startswith("none"):
        assert agrees(read.problem, meant)
    else:
        start, end = meant.split(" - ")
        assert read.value == pytest.approx((float(start), float(end)))
