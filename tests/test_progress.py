"""Progress of long steps in a log: often enough to see that something happens, and never twice the same."""

from __future__ import annotations

import io

from arcvideo import progress
from arcvideo.progress import counted, lines, watched


def test_items_pass_unchanged_and_in_order() -> None:
    assert list(watched(iter("abc"), what="letters", total=3, unit="letter", log=io.StringIO())) == ["a", "b", "c"]


def test_a_log_gets_a_line_whenever_the_time_has_passed(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    advance = lines(what="towers", total=10, unit="step", log=log, seconds=5.0)
    for _ in range(10):
        now[0] += 2.0
        advance(1)
    assert log.getvalue().splitlines() == [
        "towers: 3 of 10 steps, 14 s left",
        "towers: 6 of 10 steps, 8 s left",
        "towers: 9 of 10 steps, 2 s left",
    ]


def test_bytes_of_unknown_number_are_told_in_a_log_as_what_has_come(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with counted(what="fetch x.tar", total=None, unit="B", log=log) as advance:
        for _ in range(3):
            now[0] += 3.0
            advance(500_000)
    assert log.getvalue() == "fetch x.tar: 1.0 MB\n"


def test_what_is_quiet_tells_nothing(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    now = iter(range(0, 100, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    log = io.StringIO()
    with counted(what="index", total=3, unit="shard", quiet=True, log=log) as advance:
        advance(1)
    assert log.getvalue() == ""
