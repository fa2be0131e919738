"""The verdict of the soak: what grows is told from what only strays, on made series and on a run that leaks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.soak import SERIES, Look, judge, soak


def looks(rss: Callable[[int], float], *, descriptors: Callable[[int], int] = lambda number: 40) -> list[Look]:
    """A run of 300 looks."""
    chance = random.Random(0)
    return [
        Look(
            seconds=2.0 * number, step=10 * number, rss_mib=rss(number) + chance.gauss(0, 3), children_rss_mib=80.0,
            descriptors=descriptors(number), threads=12, processes=3,
        )
        for number in range(300)
    ]  # fmt: skip


def growing(seen: list[Look]) -> list[str]:
    return [verdict.name for verdict in judge(seen) if not verdict.flat]


def test_what_only_strays_or_fills_caches_at_first_is_flat() -> None:
    assert growing(looks(lambda number: 600.0)) == []
    assert growing(looks(lambda number: 400 + 200 * (1 - 0.9**number))) == []
    assert growing(looks(lambda number: 600 - number / 10)) == []
    assert growing(looks(lambda number: 600.0, descriptors=lambda number: 40 + number % 7)) == []


def test_what_grows_is_named_however_slowly() -> None:
    assert growing(looks(lambda number: 600 + number / 10)) == ["rss_mib"]
    assert growing(looks(lambda number: 600.0, descriptors=lambda number: 40 + number // 50)) == ["descriptors"]


def test_too_few_looks_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="let it run longer"):
        judge(looks(lambda number: 600.0)[:20])


@pytest.mark.slow
def test_a_leak_in_a_real_run_is_found_and_nothing_else_is(tmp_path: Path) -> None:
    out = tmp_path / "looks.jsonl"
    seen = soak(tmp_path, steps=200, out=out, every=0.25, extra=["logger.callbacks=[tests.leaking:Leaking]"])
    assert [Look(**json.loads(row)) for row in out.read_text().splitlines()][: len(seen)] == seen
    assert seen[-1].step > 150
    verdicts = {verdict.name: verdict for verdict in judge(seen)}
    assert list(verdicts) == list(SERIES)
    assert not verdicts["rss_mib"].flat
    assert not verdicts["descriptors"].flat
    assert verdicts["processes"].flat
    assert verdicts["processes"].level == 3
    # A step leaks a mebibyte and a descriptor: two thirds of the run are judged.
    assert verdicts["descriptors"].growth == pytest.approx(verdicts["rss_mib"].growth, rel=0.5)
