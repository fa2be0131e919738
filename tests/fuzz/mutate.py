"""Changes to an input that a fuzzer would need long to find: of single values in JSON and YAML, of blocks in tars."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "0", "nan", "\ud83d", "\u2028", "\x1b[31m", "\x00", "..", "/", "../../x", "a" * 5000,
    "$HOME", "${oc.env:X}",
    [], {}, [[]], [None], [0, 0], [5, 2], [float("nan"), 1], {"": None}, {"items": []}, [["a"], {"a": [1]}],
]  # fmt: skip
"""Values that no reader expects where they stand."""

Mutate = Callable[[bytes, int], bytes]
"""(data, seed) -> data."""


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside a JSON value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else list(range(len(one))) if isinstance(one, list) else []
        found += [(one, key) for key in keys]
        waiting += [one[key] for key in keys]
    return found


def in_json(data: bytes, seed: int) -> bytes:
    """Return JSON, or the JSON lines of it, with one to three values replaced, taken out, doubled or moved."""
    draw = random.Random(seed)
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    whole = draw.random() < 0.5 or len(lines) < 2
    try:
        value = json.loads(data if whole else lines[number])
    except (ValueError, RecursionError):
        return in_bytes(data, seed)
    for _ in range(draw.randint(1, 3)):
        places = nodes(value)
        if not places:
            value = copy.deepcopy(draw.choice(ODD))
            break
        container, key = draw.choice(places)
        kind = draw.random()
        if kind < 0.6:
            container[key] = copy.deepcopy(draw.choice(ODD))
        elif kind < 0.75:
            del container[key]
        elif kind < 0.9:
            other, name = draw.choice(places)
            container[key] = copy.deepcopy(other[name])
        elif isinstance(container, dict):
            container[draw.choice(["", "x", "step", "items", "format"])] = copy.deepcopy(container[key])
        else:
            container.append(copy.deepcopy(container[key]))
    try:
        text = json.dumps(value).encode()
    except (ValueError, RecursionError):
        return in_bytes(data, seed)
    return text if whole else b"\n".join([*lines[:number], text, *lines[number + 1 :]])


def in_bytes(data: bytes, seed: int) -> bytes:
    """Return the bytes with a piece flipped, cut, doubled, zeroed or overwritten; half of the time a tar's blocks."""
    draw = random.Random(seed)
    unit = 512 if draw.random() < 0.5 and len(data) > 1024 else 1
    size = max(1, len(data) // unit)
    start = draw.randrange(size) * unit
    end = min(len(data), start + unit * draw.randint(1, 8))
    kind = draw.randrange(6)
    if kind == 0 and data:
        at = draw.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:start]
    if kind == 2:
        return data[:end] + data[start:]
    if kind == 3:
        return data[:start] + bytes(end - start) + data[end:]
    if kind == 4:
        return data[:start] + data[end:]
    number = draw.choice([0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])
    width = draw.choice([1, 2, 4, 8])
    written = (number & (1 << 8 * width) - 1).to_bytes(width, draw.choice(["big", "little"]))  # type: ignore[arg-type]
    return data[:start] + written + data[start + width :]
