"""One row of a conversation in any of the dialects that public sets are written in.

Turns stand in `conversations`, `messages` or `conversation`, as {from, value} or {role, content}; in `query`,
`response` and `history`; or in `instruction`, `input` and `output`. `content` may be OpenAI's list of parts. Media
stand in `video(s)`, `image(s)` and `audio(s)`, as names or as {path}, or in the parts. A video may be the list of the
frames that were extracted from it, {"frames": [...], "times": [...]} or a list of names with `fps` beside it. Several
media stand where the tags of their kinds stand, or all in front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from arcvideo.data.importers.sources import Cell
from arcvideo.render import MEDIA_TAG
from arcvideo.tasks import RecordError

_TURNS = ("conversations", "messages", "conversation")
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "gpt"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "tool_call", "tool_response", "function", "function_call", "observation"), "tool"),
}
_MEDIA = ("video", "image", "audio")
_READ = frozenset((*_TURNS, *_MEDIA, *(f"{kind}s" for kind in _MEDIA), "id", "system", "fps", "query", "response",
                   "history", "instruction", "input", "output"))  # fmt: skip
"""Columns that are read; what stands in others is left out, and told."""
_NAMES = ("path", "url", "file", "video", "image", "audio")
_LATEST = 1e9
"""Seconds; a later time of a frame is a mistake."""
_TAGS = {
    "video": re.compile(r"<video>|<\|vision_start\|><\|video_pad\|><\|vision_end\|>|<\|VIDEO\|>"),
    "image": re.compile(r"<image>|<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|IMAGE\|>|<ImageHere>"),
    "audio": re.compile(r"<audio>|<\|audio_bos\|><\|AUDIO\|><\|audio_eos\|>|<\|AUDIO\|>"),
}


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Pictures that were extracted from a video."""

    names: tuple[str, ...]
    times: tuple[float, ...]
    """Second of each."""


Named = str | Frames | Cell
"""A medium: the name of a file, frames, or a file in a table."""


@dataclass(frozen=True, kw_only=True)
class Talk:
    """A conversation and the media it is about."""

    pairs: tuple[tuple[str, str], ...]
    """(question, answer), at least one; media tags are `<video>`."""
    system: str
    """What stands before the first question; "" for nothing."""
    media: tuple[Named, ...]
    """In the order in which they are shown; none for text only."""
    sound: Named | None
    """A sound that belongs to the only picture."""
    ignored: tuple[str, ...]
    """Columns that were left out."""


def read_talk(row: Mapping[str, Any]) -> Talk:
    """Return the conversation of a row.

    Raises:
        RecordError: `bad_conversations`, `no_answer`, `tool_turns`, `no_media`, `several_media`, `bad_media_tag`.
    """
    media: dict[str, list[Named]] = {kind: _named(row, (kind, f"{kind}s"), fps=row.get("fps")) for kind in _MEDIA}
    said: list[tuple[str, str]] = []
    for role, content in _turns(row):
        said.append((role, _text(content, media=media)))
    system = row.get("system") or ""
    if not isinstance(system, str):
        raise RecordError("bad_conversations", f"'system' must be a text, got {type(system).__name__}")
    if said and said[0][0] == "system":
        system = "\n".join(text for text in (system, said.pop(0)[1]) if text)
    roles = [role for role, _ in said]
    if "tool" in roles:
        raise RecordError("tool_turns", "turns of tools cannot be taught; leave the row out, or cut it before them")
    if not roles or roles != ["human", "gpt"] * (len(roles) // 2):
        reason = "no_answer" if roles[-1:] == ["human"] else "bad_conversations"
        raise RecordError(reason, f"turns must alternate human, gpt; got {roles}")
    pictures, sounds = media["video"] + media["image"], media["audio"]
    both = len(pictures) == 1 and len(sounds) == 1
    questions = [text for _, text in said[::2]]
    shows = next((kind for text in questions for kind in _kinds(text) if kind != "audio"), None)
    if sounds and not pictures and shows is not None:
        raise RecordError("bad_media_tag", f"a question has a tag for a {shows}, and the row names sound alone")
    several = len(pictures) + len(sounds) > 1 and not both
    shown = _in_order(questions, media=media) if several else tuple(pictures or sounds)
    questions = [_one_tag(text, both=both) for text in questions]
    return Talk(
        pairs=tuple(zip(questions, (text for _, text in said[1::2]), strict=True)),
        system=system,
        media=shown,
        sound=sounds[0] if both else None,
        ignored=tuple(name for name, value in row.items() if name not in _READ and value not in (None, "", [])),
    )


def _in_order(questions: Sequence[str], *, media: Mapping[str, list[Named]]) -> tuple[Named, ...]:
    """Return several media in the order of the tags of their kinds.

    Raises:
        RecordError: `several_media`: another number of tags of a kind than media, and not none at all.
    """
    tags = [kind for text in questions for kind in _kinds(text)]
    counts = {kind: len(named) for kind, named in media.items()}
    if not tags:
        return tuple(medium for named in media.values() for medium in named)
    if any(tags.count(kind) != count for kind, count in counts.items()):
        written = ", ".join(f"{tags.count(kind)} tags for {count} of kind {kind}" for kind, count in counts.items())
        raise RecordError("several_media", f"several media need a tag each, or none: {written}")
    waiting = {kind: iter(named) for kind, named in media.items()}
    return tuple(next(waiting[kind]) for kind in tags)


def _kinds(text: str) -> list[str]:
    """Return the kinds of the media tags of a text, in order."""
    tags = [(match.start(), kind) for kind, pattern in _TAGS.items() for match in pattern.finditer(text)]
    return [kind for _, kind in sorted(tags)]


def _turns(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (human, gpt, system or tool; content) of each turn."""
    listed = next((row[name] for name in _TURNS if row.get(name) is not None), None)
    if listed is None and ("query" in row or "instruction" in row):
        return _pairs(row)
    if not isinstance(listed, list) or not all(isinstance(turn, Mapping) for turn in listed):
        raise RecordError("bad_conversations", "'conversations' or 'messages' must be a list of turns")
    turns = []
    for turn in listed:
        name = turn.get("from", turn.get("role"))
        role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise RecordError("bad_conversations", f"who is {name!r}? roles are {', '.join(_ROLES)}")
        role = "tool" if turn.get("tool_calls") else role
        turns.append((role, turn.get("value", turn.get("content"))))
    return turns


def _pairs(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the turns of `query`, `response`, `history` and of `instruction`, `input`, `output`."""
    question = row.get("query", row.get("instruction"))
    more = row.get("input")
    if more not in (None, ""):
        if not isinstance(more, str) or not isinstance(question, str | None):
            raise RecordError("bad_conversations", "'input' and what it is added to must be texts")
        question = f"{question}\n{more}" if question else more
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RecordError("bad_conversations", "'history' must be a list of [question, answer]")
    pairs = [*pairs, [question, row.get("response", row.get("output"))]]
    turns: list[tuple[str, Any]] = [turn for pair in pairs for turn in (("human", pair[0]), ("gpt", pair[1]))]
    return turns if turns[-1][1] is not None else turns[:-1]


def _named(row: Mapping[str, Any], fields: tuple[str, ...], *, fps: Any) -> list[Named]:
    """Return the media that columns name."""
    named: list[Named] = []
    for field in fields:
        value = row.get(field)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if field == "video" and isinstance(value, list) and fps is not None:
            listed = [value]
        for name in listed:
            named.append(_name(name, fps=fps))
    return named


def _name(value: Any, *, fps: Any = None) -> Named:
    """Return the name in a name, or in an object such as {"path": ...}; the frames in a list of names."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, Mapping):
        fps = value.get("fps", value.get("sample_fps", fps))
        if value.get("frames") is not None:
            return _frames(value["frames"], times=value.get("times"), fps=fps)
        value = next((value[field] for field in _NAMES if value.get(field)), None)
    if isinstance(value, list):
        return _frames(value, times=None, fps=fps)
    if not isinstance(value, str) or not value:
        raise RecordError("no_media", f"media must be file names, got {str(value)[:80]!r}")
    return value


def _frames(names: Any, *, times: Any, fps: Any) -> Frames:
    """Return the frames of a video.

    Raises:
        RecordError: `no_media`, `bad_times`.
    """
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise RecordError("no_media", f"frames must be file names, got {str(names)[:80]!r}")
    if times is None and isinstance(fps, (int, float)) and not isinstance(fps, bool) and fps > 0:
        times = [number / fps for number in range(len(names))]
    if not isinstance(times, list) or len(times) != len(names):
        raise RecordError("bad_times", f"{len(names)} frames need as many 'times', in seconds, or 'fps'")
    good = all(type(second) in (int, float) and -_LATEST < second < _LATEST for second in times)  # and no NaN
    if not good or times[0] < 0 or any(a >= b for a, b in pairwise(times)):
        raise RecordError("bad_times", f"'times' must be ascending seconds, got {str(times)[:80]}")
    return Frames(names=tuple(names), times=tuple(map(float, times)))


def _text(content: Any, *, media: Mapping[str, list[Named]]) -> str:
    """Return the text of a turn; media among its parts are added to the lists, and a tag stands where they stood."""
    if isinstance(content, str):
        return content
    if content is None:
        raise RecordError("no_answer", "a turn without a text")
    if not isinstance(content, list):
        raise RecordError("bad_conversations", "every turn needs a text, or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type", "") if isinstance(part, Mapping) else "text" if isinstance(part, str) else None
        if kind == "text":
            text = part if isinstance(part, str) else part.get("text")
            if not isinstance(text, str):
                raise RecordError("bad_conversations", "a part of type text needs a text")
            texts.append(text)
            continue
        medium = next((name for name in _MEDIA if isinstance(kind, str) and name in kind), None)
        if medium is None:
            raise RecordError("bad_conversations", f"a part of type {kind!r}; there are text, video, image, audio")
        inside = next((part[field] for field in (kind, medium, "frames", *_NAMES) if part.get(field)), None)
        if inside is not None:  # without a name the columns of the row tell it
            media[medium].append(_name(part if part.get("frames") is not None else inside, fps=part.get("fps")))
        texts.append(f"<{medium}>")
    return "".join(f"{text}\n" if re.fullmatch(r"<\w+>", text) else text for text in texts).rstrip("\n")


def _one_tag(text: str, *, both: bool) -> str:
    """Return the question with this model's media tag for those of other formats; one for a picture and its sound."""
    if both:
        text = re.sub(rf"(?:{_TAGS['audio'].pattern})\n?", "", text)
    for pattern in _TAGS.values():
        text = pattern.sub(MEDIA_TAG, text)
    return text
