"""The page about what each answer needs, from a journal written by hand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluation.answers import Answer
from arcvideo.measuring.folder import Journal, open_measurement, read_answers
from arcvideo.measuring.needs_page import needs_by_metric
from arcvideo.measuring.scores import score_folder

SPAN = {"task": "grounding", "truth": {"span": [2.0, 6.0]}}
ANSWERS = {  # what is said with everything, without sound, without picture
    "a/0": ("A", "B", "A", "audio"),
    "b/0": ("A", "A", "B", "video"),
    "c/0": ("A", "B", "B", "both"),
    "d/0": ("A", "A", "A", "neither"),
    "e/0": ("B", "A", "A", "unknown"),
}


def said(key: str, text: str, *, arm: str = "full", **changes: Any) -> Answer:
    known = {"task": "mcq", "truth": {"letter": "A", "options": ["x", "y"]}, "tags": ("t",), "seconds": 8.0} | changes
    return Answer(key=key, number=0, clip=key[0], question="<b>Which?</b>", reference="A", text=text, arm=arm, **known)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_measurement(tmp_path / "m", origin={"questions": "q", "sound": "not given: none"}, facts={"bench": "doors"})
    arms = ("full", "no_sound", "no_picture")
    with Journal(tmp_path / "m", rank=0) as journal:
        for key, (*texts, _) in ANSWERS.items():
            journal.add([said(key, text, arm=arm) for arm, text in zip(arms, texts, strict=True)])
        # An IoU of 0.6: right from 0.5 on, wrong from 0.7 on.
        spans = ("2 - 6", "2 - 4.4", "0 - 1")
        journal.add([said("f/0", text, arm=arm, **SPAN) for arm, text in zip(arms, spans, strict=True)])
        journal.add([said("g/0", "A\ud800"), said("g/0", "A", arm="no_sound")])  # the other arm was not asked
        journal.add([said("h/0", "A", has_audio=False), said("h/0", "B", arm="no_picture", has_audio=False)])
    return tmp_path / "m"


def test_each_metric_says_what_its_items_need(folder: Path) -> None:
    score_folder(folder, metrics=["mcq_accuracy", "grounding_miou", "grounding_r1_50", "grounding_r1_70"], bootstrap=9)
    metrics = ["mcq_accuracy", "grounding_miou", "grounding_r1_50", "grounding_r1_70"]
    found = needs_by_metric(read_answers(folder).answers, metrics=metrics)
    expected = {key: f"needs:{row[3]}" for key, row in ANSWERS.items()} | {"h/0": "needs:video"}
    assert found["mcq_accuracy"] == expected
    assert [found[name]["f/0"] for name in metrics[1:]] == ["needs:video", "needs:video", "needs:both"]


class Page(HTMLParser):
    """What a browser would open and fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "th", "tr", "thead", "td"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("tr", "thead", "td"):
            assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_every_class_and_item(folder: Path) -> None:
    score_folder(folder, bootstrap=9)
    text = (folder / "needs.html").read_bytes().decode("ascii")
    page = Page(text)
    assert page.open == page.fetched == []
    assert "url(" not in text
    assert "<b>Which?" not in text
    assert "not given: none" in text
    assert "doors" in text
    assert re.search(r'aria-label="audio 1, video 2, both 1, neither 1, unknown 1"', text)
    assert text.count("<td class=key>") == len(ANSWERS) + 2
