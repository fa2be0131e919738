"""What is never shown or stored: credentials in URLs, values of environment variables, codes that steer a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*:/{1,2})[^\s/@?#'\"<>]+@", re.IGNORECASE)
_QUERY = re.compile(
    r"(?P<name>[?&;][^=&\s]*(?:token|key|secret|sig|signature|passw(?:or)?d|credential|auth|session|jwt)[^=&\s]*=)"
    r"[^&\s'\"<>#]*[^&\s'\"<>#:;,.)]",
    re.IGNORECASE,
)
"""The parts of a URL that let somebody in; taken for a path it has lost a slash."""
_SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|(?:API)?KEY|SECRET|PASS(?:WORD|WD)?|CREDENTIALS?|AUTH)(?:_|$)", re.I)
_SHORTEST = 8
"""Signs of a value that is looked for inside of other texts; a shorter one would be found in words."""
_NOTED: dict[str, str] = {}
"""Value of an environment variable that settings asked for -> its name."""


def note(name: str, value: str) -> None:
    """Remember that settings took a value from the environment."""
    if value:
        _NOTED.setdefault(value, name)


def hidden(text: str) -> str:
    """Return a text without credentials in URLs, and without what secret environment variables hold.

    Secret is a variable that says so by its name (TOKEN, KEY, SECRET, PASSWORD, ...) or whose value settings took; of
    the latter, paths stay, because whoever reads a message must find the file.
    """
    if ":/" in text:
        text = _QUERY.sub(rf"\g<name>{MASK}", _USER.sub(rf"\g<scheme>{MASK}@", text))
    for value, name in _secrets().items():
        if value in text:
            text = text.replace(value, f"${{oc.env:{name}}}")
    return text


def recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as they are written down: what came from the environment is told by the variable's name."""
    return {key: _recorded(value) for key, value in settings.items()}


def _recorded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return recorded(value)
    if isinstance(value, (list, tuple)):
        return [_recorded(item) for item in value]
    if not isinstance(value, str):
        return value
    if value in _NOTED:
        return f"${{oc.env:{_NOTED[value]}}}"
    for part, name in sorted(_NOTED.items(), key=lambda pair: -len(pair[0])):
        if len(part) >= _SHORTEST and part in value:
            value = value.replace(part, f"${{oc.env:{name}}}")
    return hidden(value)


def _secrets() -> dict[str, str]:
    """Value -> name, long ones first, so that none is left behind where one holds another."""
    secrets = {value: name for value, name in _NOTED.items() if "/" not in value or "://" in value}
    secrets |= {value: name for name, value in os.environ.items() if _SECRET_NAME.search(name) and "/" not in value[:1]}
    return dict(sorted(((v, n) for v, n in secrets.items() if len(v) >= _SHORTEST), key=lambda pair: -len(pair[0])))


_STEERING = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")
"""Signs that move the cursor, rewrite a line, set a title, or turn the direction of the text."""
_BAR = re.compile(r"(?:\x1b\[A|[\r\n])*")
"""What a progress bar writes by itself to find its line."""
_COLOUR = re.compile(r"\x1b\[(?:(?:[0-4]|2[1-4]|3[0-79]|9[0-7]|38;5;\d{1,3}|38;2(?:;\d{1,3}){3})(?:;(?=\d)|(?=m)))*m")
"""Colours and weights of letters, none that hides them."""


def plain(text: str, *, colours: bool = False) -> str:
    """Return what may go to a terminal or a log: without credentials, and codes that steer a terminal as escapes.

    Args:
        text: one write; a carriage return at its beginning is a progress bar's and stays.
        colours: leave colours in, for a terminal that a person looks at.
    """
    if text.isprintable() and ":/" not in text and not _secrets():
        return text
    if _BAR.fullmatch(text):
        return text
    start = "\r" if text.startswith("\r") else ""
    body = hidden(text[len(start) :])
    if not colours:
        return start + _STEERING.sub(_escape, body)
    pieces, at = [start], 0
    for match in _COLOUR.finditer(body):
        pieces += [_STEERING.sub(_escape, body[at : match.start()]), match[0]]
        at = match.end()
    return "".join([*pieces, _STEERING.sub(_escape, body[at:])])


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
