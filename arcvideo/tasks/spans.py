"""Reading the time span an answer names (docs/answers.md), and arithmetic with spans.

An answer is cut into times and the text between them. Every number in it must belong to a time, the times must form
one range, and bare numbers are times only when nothing but the range is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from arcvideo.tasks.answers import TAKEN_BACK, Reading, one_answer, undecorated

Span = tuple[float, float]
"""(start, end) in seconds."""

# A comma between digits is a decimal or thousands mark only in front of a unit: [2,6] is a pair.
_AMOUNT = re.compile(
    r"(?P<number>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d+,\d{1,2}|\d+(?:\.\d+)?)\s*(?:(?P<hours>hours?|hrs?|h|小时)"
    r"|(?P<minutes>minutes?|mins?|m|分钟?)|(?P<seconds>seconds?|secs?|s|秒钟?))(?![A-Za-z/])(?:\.(?!\d))?",
    re.IGNORECASE,
)
_UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
_GLUE = re.compile(r"\s*(?:,|and(?![A-Za-z]))?\s*", re.IGNORECASE)
_CLOCK = re.compile(
    r"(?:(?P<hours>\d{1,3}):(?=\d{2}:))?(?P<minutes>\d{1,3}):(?P<seconds>\d{2}(?:\.\d+|,\d{3}(?!\d))?)"
    r"(?:\s*(?:seconds?|secs?|s|秒)(?![A-Za-z/])(?:\.(?!\d))?)?",
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\d")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_GLUED_BEFORE = re.compile(r"[A-Za-z_%/$€£#°.]第?$")
_GLUED_AFTER = re.compile(
    r"[A-Za-z_%/$€£°]|[.:]\d|\s*(?:%|[ap]\.?m(?![A-Za-z])|(?:hours?|hrs?|h|minutes?|mins?)(?![A-Za-z]))", re.I
)
_SIGN = re.compile(r"[-+\u2212\u00b1~\u2248<>]第?$")

_DASH = r"(?:-{1,3}>?|=+>|[\u2010-\u2015\u2212~\u2192\u301c\u2026])"
_TO = r"(?:up\s+to|to|until|till|through|thru|一?直?到|至)"
_END = r"(?:it\s+)?(?:end(?:s|ed|ing)?(?:[_ ]?time)?|stops?|stopping|结束(?:时间)?)\s*(?:at|于|在|是|为)?\s*[:=]?"
_START = r"(?:start|begin|开始)"
_CONNECTOR = re.compile(
    rf"\s*{_START}?\s*(?:{_DASH}\s*{_TO}?|[,;、]?\s*{_TO}|[,;、]?\s*(?:(?:and|then|并|且)\s*)?{_END}"
    r"|(?P<comma>[,;、])|(?P<both>and|和|与))\s*第?\s*",
    re.IGNORECASE,
)
_CHAIN = re.compile(rf"\s*(?:{_DASH}|{_TO})\s*第?\s*", re.IGNORECASE)
_BETWEEN = re.compile(r"(?:between|介于|在)\s*第?\s*$", re.IGNORECASE)
_NOT = re.compile(
    r"(?:(?<![a-z])(?:not|never)|n['\u2019]t|不是|不在|不|没)\s*(?:from|between|at|in|从|在)?\s*第?\s*$", re.I
)
_FILLER = re.compile(
    r"(?:[\s.,:;=|。、第从在于为是由约]|答案|时间|范围|区间|开始|结束|-(?=\s|$)|(?<![a-z])(?:the|my|a|an|answer|final|correct"
    r"|times?|timestamps?|range|span|interval|segment|is|are|it|event|from|between|start(?:s|ing|_time)?|begin(?:s|ning)?"
    r"|at|in|json|seconds?|secs?|s)(?![a-z]))*",
    re.IGNORECASE,
)
"""What may stand around bare numbers that are a range."""


@dataclass(frozen=True, kw_only=True)
class _Time:
    """A time in a text; `unit` is the seconds of its only unit, 0 for a clock or several units, None without any."""

    start: int
    end: int
    seconds: float
    unit: int | None


def parse_span(text: str) -> tuple[float, float] | None:
    """Return the (start, end) in seconds of the one time range an answer names; None without one, or when reversed.

    Understands clocks (HH:MM:SS, MM:SS, with fractions), amounts ('3.5 s', '1 min 2 s', '12 seconds' in Chinese), pairs
    and JSON of bare numbers, all dashes, and English and Chinese connectors.
    """
    return read_span(text).value


def read_span(text: str) -> Reading[Span]:
    """Return the (start, end) in seconds that a completion names, or why there is no single range."""
    answer = one_answer(text)
    if answer.value is None:
        return Reading(problem=answer.problem)
    said = undecorated(re.sub(r"</?span>", " ", answer.value, flags=re.IGNORECASE))
    said = re.sub(r"[()\[\]{}【】《》]", " ", said)
    times, wrong = _times(said)
    if wrong is not None:
        return Reading(problem=wrong)
    if len(times) < 2:
        return Reading(problem="no time range")
    if len(times) % 2:
        return Reading(problem=f"{len(times)} times, which are no range")
    return _range(said, times)


def _range(said: str, times: Sequence[_Time]) -> Reading[Span]:
    """Return the range of an even number of times; one that is told several times is one range."""
    spans = []
    for first, second in zip(times[::2], times[1::2], strict=True):
        between = _CONNECTOR.fullmatch(said, first.end, second.start)
        if between is None or (between["both"] and not _BETWEEN.search(said[: first.start])):
            return Reading(problem="times, but no range")
        if between[0] == "," and first.unit is None and second.unit is not None:
            return Reading(problem="a comma that may be a decimal point")  # 0,500 s
        scale = second.unit if first.unit is None and second.unit else 1
        bare = first.unit is None and second.unit is None
        if not bare and (second.unit is None or (first.unit is None and not second.unit)):
            return Reading(problem="a number without a unit beside a time")
        spans.append((first.seconds * scale, second.seconds))
        if (bare or between["comma"]) and not _is_all(said, times):
            return Reading(problem="numbers among other words")
    chained = any(
        _CHAIN.fullmatch(said, before.end, after.start) for before, after in zip(times[1::2], times[2::2], strict=False)
    )
    if len(set(spans)) > 1 or chained:
        return Reading(problem="several ranges")
    (start, end) = spans[0]
    if _NOT.search(said[: times[0].start]) or TAKEN_BACK.search(said):
        return Reading(problem="a range that is denied")
    if end < start:
        return Reading(problem=f"reversed span {start:g} - {end:g} s")
    return Reading(value=(start, end))


def _is_all(said: str, times: Sequence[_Time]) -> bool:
    """Return whether one range is all that is said."""
    before, after = said[: times[0].start], said[times[-1].end :]
    return len(times) == 2 and bool(_FILLER.fullmatch(before) and _FILLER.fullmatch(after))


def _times(said: str) -> tuple[list[_Time], str | None]:
    """Return the times of a text and what is wrong with a number that is none."""
    times: list[_Time] = []
    place = 0
    while digit := _DIGIT.search(said, place):
        time = _clock(said, digit.start()) or _amount(said, digit.start()) or _bare(said, digit.start())
        before, after = said[place : time.start], said[time.end :]
        sign = _SIGN.search(before) and not (times and _CONNECTOR.fullmatch(before))
        if not math.isfinite(time.seconds) or sign or _GLUED_BEFORE.search(before) or _GLUED_AFTER.match(after):
            return [], f"no time: {said[max(time.start - 1, 0) : min(time.end + 1, time.start + 20)].strip()}"
        times.append(time)
        place = time.end
    return times, None


def _clock(said: str, place: int) -> _Time | None:
    match = _CLOCK.match(said, place)
    if not match:
        return None
    hours, minutes = int(match["hours"] or 0), int(match["minutes"])
    seconds = float(match["seconds"].replace(",", "."))
    good = seconds < 60 and (minutes < 60 or match["hours"] is None)
    return _Time(
        start=place, end=match.end(), seconds=hours * 3600 + minutes * 60 + seconds if good else math.nan, unit=0
    )


def _amount(said: str, start: int) -> _Time | None:
    """Return '90 s', '1 min 30 s' or '1h2m3s': units that fall, and less than sixty of every one but the first."""
    total, last, end, unit, place = 0.0, math.inf, start, None, start
    while match := _AMOUNT.match(said, place):
        size = next(size for name, size in _UNITS.items() if match[name])
        number = _written(match["number"])
        if size >= last or (unit is not None and number >= 60):
            break
        total, last, end, unit = total + number * size, size, match.end(), size if unit is None else 0
        glue = _GLUE.match(said, end)
        place = glue.end() if glue else end
    return None if unit is None else _Time(start=start, end=end, seconds=total, unit=unit)


def _written(number: str) -> float:
    """Return the value of '12.5', '12,5' and '1,200'."""
    whole, comma, rest = number.partition(",")
    return float(f"{whole}.{rest}") if comma and len(rest) < 3 else float(number.replace(",", ""))


def _bare(said: str, start: int) -> _Time:
    match = _NUMBER.match(said, start)
    assert match is not None, "a digit begins a number"
    return _Time(start=start, end=match.end(), seconds=float(match[0]), unit=None)


def temporal_iou(first: Span, second: Span) -> float:
    """Return the intersection over union of two time spans in seconds; 0 when both are empty."""
    shared = min(first[1], second[1]) - max(first[0], second[0])
    union = max(first[1], second[1]) - min(first[0], second[0])
    return max(0.0, shared) / union if union > 0 else 0.0


def clock(seconds: float) -> str:
    """Return 'HH:MM:SS' of the nearest whole second, halves up."""
    whole = int(seconds + 0.5)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def clock_span(span: Span) -> str:
    """Return 'HH:MM:SS - HH:MM:SS'; a span that rounds to nothing is widened to one second."""
    start, end = int(span[0] + 0.5), int(span[1] + 0.5)
    return f"{clock(start)} - {clock(max(end, start + 1))}"
