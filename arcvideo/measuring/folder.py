"""The folder of one measurement: its card, every answer as it comes, and the scores. Nothing in it is ever overwritten.

`card.json` says what decides the answers, before the first of them is asked. Each rank appends to a journal of its own,
`answers-0.jsonl` and so on, so that a process that is killed loses nothing, and the same command goes on from there
with any number of ranks. `scores.json` and `predictions.jsonl` follow from the answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo.evaluation.answers import Answer, answer_of
from arcvideo.files import cut_torn_row, is_partial, json_line, parsed_lines, write_whole
from arcvideo.seals import digest_of, read_object

CARD, SCORES, PREDICTIONS = "card.json", "scores.json", "predictions.jsonl"
FORMAT = 1
"""Of the folder; raised when something in it changes its meaning."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A question that could not be asked."""

    key: str
    reason: str
    """A short name to count by."""
    detail: str


@dataclass(kw_only=True)
class Found:
    """What the journals of a measurement hold."""

    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    """(arm, key) -> answer, in order of the questions."""
    lost: dict[str, Lost] = field(default_factory=dict)
    """Key -> why it was not asked."""
    clips: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Clip -> what was noted of it: frame times, seconds of decoding."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of all ranks together by what it was spent on."""


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of a measurement.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = folder / CARD
    try:
        card = read_object(path)
    except FileNotFoundError:
        inside = sorted(card.parent for card in (*folder.glob(f"*/{CARD}"), *folder.glob(f"*/*/{CARD}")))
        more = f"; inside it are {', '.join(map(str, inside[:3]))}" if inside else ""
        raise ValueError(f"{folder} is no measurement: it has no {CARD}{more}") from None
    card.pop("seal", None)
    if card.get("format") != FORMAT:
        raise ValueError(f"{path} has format {card.get('format')!r}; this version reads format {FORMAT}")
    return dict(card)


def open_measurement(folder: Path, *, origin: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Begin a measurement, or find the one that is to be continued; return its card.

    Args:
        folder: of the measurement.
        origin: everything that decides the answers, JSON-able.
        facts: what else its card says.

    Raises:
        ValueError: the folder holds another measurement; the message names what differs.
    """
    origin = json.loads(json.dumps(origin))
    if (folder / CARD).exists():
        card = read_card(folder)
        differing = [key for key in sorted({*card["origin"], *origin}) if card["origin"].get(key) != origin.get(key)]
        if differing:
            details = ", ".join(f"{key} ({_short(card['origin'].get(key))} there, {_short(origin.get(key))} now)"
                             for key in differing)  # fmt: skip
            raise ValueError(f"{folder} holds another measurement: {details}; give another name=")
        return card
    if folder.exists() and not all(map(is_partial, folder.iterdir())):
        raise ValueError(f"{folder} is not empty and no measurement; give another name= or out=")
    folder.mkdir(parents=True, exist_ok=True)
    card = {"format": FORMAT, "name": folder.name, "origin": origin, **facts}
    write_card(folder, card)
    return card


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the card, whole."""
    content = json.loads(json.dumps(card))
    write_whole(folder / CARD, json.dumps(content | {"seal": digest_of(content)}, indent=1) + "\n")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def journals(folder: Path) -> list[Path]:
    """Return the files of answers of all ranks, in order of the ranks."""
    return sorted(folder.glob("answers-*.jsonl"), key=lambda path: int(path.stem.rpartition("-")[2]))


def read_answers(folder: Path) -> Found:
    """Return everything that was answered, whoever asks at the moment; a half line at a file's end does not count."""
    measurement = Found()
    for line in _lines(folder):
        if "skipped" in line:
            continue
        if "lost" in line:
            measurement.lost[line["key"]] = Lost(key=line["key"], reason=line["lost"], detail=line["detail"])
        elif "seconds_of" in line:
            for name, value in line["seconds_of"].items():
                measurement.seconds[name] = measurement.seconds.get(name, 0.0) + value
        elif "frame_times" in line:
            measurement.clips[line["clip"]] = line
        else:
            answer = answer_of(line)
            measurement.answers.setdefault((answer.arm, answer.key), answer)
    order = sorted(measurement.answers.items(), key=lambda row: (row[1].number, row[0][0]))
    measurement.answers = dict(order)
    return measurement


def asked_before(folder: Path) -> tuple[set[tuple[str, str]], set[str]]:
    """Return the (arm, key) that need no asking any more, and the keys that cannot be asked; no text is kept."""
    answered: set[tuple[str, str]] = set()
    lost: set[str] = set()
    for line in _lines(folder):
        if "lost" in line:
            lost.add(line["key"])
        elif "skipped" in line:
            answered.update((line["skipped"], key) for key in line["keys"])
        elif "text" in line:
            answered.add((line["arm"], line["key"]))
    return answered, lost


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in journals(folder):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield from parsed_lines(line, name=str(path))


class Journal:
    """This rank's answers, appended as they come."""

    def __init__(self, folder: Path, *, rank: int) -> None:
        """Open or begin; the half line of a process that was killed is cut off, which is said."""
        self.path = folder / f"answers-{rank}.jsonl"
        if self.path.exists():
            cut_torn_row(self.path)
        self._file = self.path.open("a", encoding="ascii")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, answers: Sequence[Answer], *, seconds: Mapping[str, float] | None = None) -> None:
        """Remember answers that were given together, and the time they took."""
        rows: list[Mapping[str, Any]] = [answer.row() for answer in answers]
        self._append([*rows, *([{"seconds_of": dict(seconds)}] if seconds else [])])

    def note(self, clip: str, *, frame_times: Sequence[Sequence[float]], prompts: str) -> None:
        """Remember at which times a clip was looked at, and the digest of what was asked about it."""
        self._append([{"clip": clip, "frame_times": [list(span) for span in frame_times], "prompts": prompts}])

    def skip(self, arm: str, *, keys: Sequence[str]) -> None:
        """Remember that an arm changes nothing for these questions, so that it is not asked."""
        self._append([{"skipped": arm, "keys": list(keys)}])

    def lose(self, lost: Iterable[Lost]) -> None:
        """Remember questions that cannot be asked."""
        self._append({"key": hole.key, "lost": hole.reason, "detail": hole.detail} for hole in lost)

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        # One write: a kill leaves whole lines and at most half of the last.
        self._file.write("".join(json_line(row, checked=True) for row in rows))
        self._file.flush()
