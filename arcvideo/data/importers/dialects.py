"""One row of a conversation in any of the dialects that public sets are written in.

Turns stand in `conversations`, `messages` or `conversation`, as {from, value} or {role, content}; in `query`,
`response` and `history`; or in `instruction`, `input` and `output`. `content` may be OpenAI's list of parts. Media
stand in `video(s)`, `image(s)` and `audio(s)`, as names or as {path}, or in the parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arcvideo.render import MEDIA_TAG
from arcvideo.tasks import RecordError

_TURNS = ("conversations", "messages", "conversation")
_ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "gpt"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "tool_call", "tool_response", "function", "function_call", "observation"), "tool"),
}
_PICTURES = ("video", "videos", "image", "images")
_SOUNDS = ("audio", "audios")
_IGNORED = ("tools", "objects", "rejected_response", "label", "margin")
"""Columns with a meaning in their own format that has none here."""
_NAMES = ("path", "url", "file", "video", "image", "audio")
_TAGS = {
    "video": re.compile(r"<video>|<\|vision_start\|><\|video_pad\|><\|vision_end\|>|<\|VIDEO\|>"),
    "image": re.compile(r"<image>|<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|IMAGE\|>|<ImageHere>"),
    "audio": re.compile(r"<audio>|<\|audio_bos\|><\|AUDIO\|><\|audio_eos\|>|<\|AUDIO\|>"),
}


@dataclass(frozen=True, kw_only=True)
class Talk:
    """A conversation about at most one clip."""

    pairs: tuple[tuple[str, str], ...]
    """(question, answer), at least one; media tags are `<video>`."""
    system: str
    """What stands before the first question; "" for nothing."""
    media: str | None
    """Name of the picture's or the only sound's file; None for text only."""
    sound: str | None
    """Name of a sound beside a picture."""
    ignored: tuple[str, ...]
    """Columns that were left out."""


def read_talk(row: Mapping[str, Any]) -> Talk:
    """Return the conversation of a row.

    Raises:
        RecordError: `bad_conversations`, `no_answer`, `tool_turns`, `no_media`, `several_media`.
    """
    pictures = _named(row, _PICTURES)
    sounds = _named(row, _SOUNDS)
    said: list[tuple[str, str]] = []
    for role, content in _turns(row):
        said.append((role, _text(content, pictures=pictures, sounds=sounds)))
    system = str(row.get("system") or "")
    if said and said[0][0] == "system":
        system = "\n".join(text for text in (system, said.pop(0)[1]) if text)
    roles = [role for role, _ in said]
    if "tool" in roles:
        raise RecordError("tool_turns", "turns of tools cannot be taught; leave the row out, or cut it before them")
    if not roles or roles != ["human", "gpt"] * (len(roles) // 2):
        reason = "no_answer" if roles[-1:] == ["human"] else "bad_conversations"
        raise RecordError(reason, f"turns must alternate human, gpt; got {roles}")
    if len(pictures) > 1 or len(sounds) > 1:
        raise RecordError("several_media", f"a record holds one clip, the row names {pictures + sounds}")
    media = next(iter(pictures or sounds), None)
    questions = [_one_tag(text, both=bool(pictures and sounds)) for _, text in said[::2]]
    return Talk(
        pairs=tuple(zip(questions, (text for _, text in said[1::2]), strict=True)),
        system=system,
        media=media,
        sound=sounds[0] if pictures and sounds else None,
        ignored=tuple(name for name in _IGNORED if row.get(name)),
    )


def _turns(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(human, gpt, system or tool; content) of each turn."""
    found = next((row[name] for name in _TURNS if row.get(name) is not None), None)
    if found is None and ("query" in row or "instruction" in row):
        return _pairs(row)
    if not isinstance(found, list) or not all(isinstance(turn, Mapping) for turn in found):
        raise RecordError("bad_conversations", "'conversations' or 'messages' must be a list of turns")
    turns = []
    for turn in found:
        name = turn.get("from", turn.get("role"))
        role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
        if role is None:
            raise RecordError("bad_conversations", f"who is {name!r}? roles are {', '.join(_ROLES)}")
        role = "tool" if turn.get("tool_calls") else role
        turns.append((role, turn.get("value", turn.get("content"))))
    return turns


def _pairs(row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The turns of `query`, `response`, `history` and of `instruction`, `input`, `output`."""
    asked = row.get("query", row.get("instruction"))
    if isinstance(row.get("input"), str) and row["input"]:
        asked = f"{asked}\n{row['input']}" if asked else row["input"]
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RecordError("bad_conversations", "'history' must be a list of [question, answer]")
    pairs = [*pairs, [asked, row.get("response", row.get("output"))]]
    turns: list[tuple[str, Any]] = [turn for pair in pairs for turn in (("human", pair[0]), ("gpt", pair[1]))]
    return turns if turns[-1][1] is not None else turns[:-1]


def _named(row: Mapping[str, Any], fields: tuple[str, ...]) -> list[str]:
    """The media files that columns name."""
    named: list[str] = []
    for field in fields:
        value = row.get(field)
        for name in value if isinstance(value, list) else [] if value is None else [value]:
            named.append(_name(name))
    return named


def _name(value: Any) -> str:
    """The name in a name, or in an object such as {"path": ...}."""
    if isinstance(value, Mapping):
        value = next((value[field] for field in _NAMES if value.get(field)), None)
    if not isinstance(value, str) or not value:
        raise RecordError("no_media", f"media must be file names, got {str(value)[:80]!r}")
    return value


def _text(content: Any, *, pictures: list[str], sounds: list[str]) -> str:
    """The text of a turn; media among its parts are added to the lists, and a tag stands where they stood."""
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
        medium = next((name for name in ("video", "image", "audio") if isinstance(kind, str) and name in kind), None)
        if medium is None:
            raise RecordError("bad_conversations", f"a part of type {kind!r}; there are text, video, image, audio")
        inside = next((part[field] for field in (kind, medium, *_NAMES) if part.get(field)), None)
        if inside is not None:  # without a name the columns of the row tell it
            (sounds if medium == "audio" else pictures).append(_name(inside))
        texts.append(f"<{medium}>")
    return "".join(f"{text}\n" if re.fullmatch(r"<\w+>", text) else text for text in texts).rstrip("\n")


def _one_tag(text: str, *, both: bool) -> str:
    """The question with this model's media tag for that of other formats; one for a picture and its sound."""
    if both:
        text = re.sub(rf"(?:{_TAGS['audio'].pattern})\n?", "", text)
    for pattern in _TAGS.values():
        text = pattern.sub(MEDIA_TAG, text)
    return text
