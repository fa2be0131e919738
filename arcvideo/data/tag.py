"""`python -m arcvideo.data.shards tag`: writes back which half of its clip each answer needs, as tags of the items."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from arcvideo.files import parsed_lines
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ShardIndex, ensure_indexes
from arcvideo.shards.write import Record, copies, write_shards

NEEDS = "needs.jsonl"
"""What a measurement says of its items."""
MEASURED = frozenset(f"needs:{name}" for name in ("audio", "video", "both", "neither", "unknown"))
"""Tags that take the place of one another."""
_LOOSE = "not measured"
"""Counts items whose own tags of that kind were taken off."""


def add_tag(commands: Any) -> None:
    """Add the subcommand."""
    text = "write the tags of a measurement (needs:audio, needs:video, ...) into copies of the shards it asked about"
    command = commands.add_parser("tag", help=text, description=text)
    command.add_argument("measurement", type=Path, help=f"folder of a measurement with arms, or its {NEEDS}")
    command.add_argument("shards", nargs="+", help="tar files, {000..011} braces or * globs")
    command.add_argument("--out", type=Path, required=True, help="folder of its own for the new shards")
    command.add_argument(
        "--only", action="append", default=[], metavar="TAG",
        help="keep only items that got this tag (again for more), for example as evaluation.shards of a gate",
    )  # fmt: skip
    command.set_defaults(run=_tag)


def _tag(options: argparse.Namespace) -> int:
    tags = read_needs(options.measurement)
    paths = [path for pattern in options.shards for path in expand_shards(pattern)]
    if len({path.name for path in paths}) < len(paths):
        raise ValueError("tag: two shards have the same name; give each folder its own --out")
    if options.out.resolve() in {path.parent.resolve() for path in paths}:
        raise ValueError(f"--out {options.out}: holds the shards to tag; give the new ones a folder of their own")
    unknown = sorted(set(options.only) - MEASURED)
    if unknown:
        raise ValueError(f"--only {unknown[0]}: a measurement gives {', '.join(sorted(MEASURED))}")
    counts: Counter[str] = Counter()
    for index in ensure_indexes(paths, workers=1):
        records = _records(index, tags=tags, only=options.only, counts=counts)
        first = next(records, None)
        if first is None:
            print(f"{index.shard.name}: no item is kept, nothing written")
            continue
        write_shards(
            chain([first], records), out=options.out, name=index.shard.stem, per_shard=len(index.clips),
            bytes_per_shard=1 << 62,
        )  # fmt: skip
    loose = counts.pop(_LOOSE, 0)
    tagged = sum(counts.values())
    if not tagged:
        raise ValueError(
            f"tag: none of the {len(tags)} items of {options.measurement} is in these shards; give those it asked about"
        )
    print(
        f"{tagged} of {len(tags)} measured items were found: "
        + ", ".join(f"{tag} {counts[tag]}" for tag in sorted(counts))
    )
    if loose:
        print(f"{loose} items that were not measured are kept without the needs: tags that their shard gave them")
    return 0


def read_needs(path: Path) -> dict[str, list[str]]:
    """Return item -> the tags that a measurement gave it.

    Args:
        path: of the measurement, or of its `needs.jsonl`.

    Raises:
        ValueError: no such file, or none that a measurement wrote.
    """
    path = path / NEEDS if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; `arcvideo evaluate ... arms=no_sound,no_picture` writes it into the measurement"
        )
    tags: dict[str, list[str]] = {}
    for row in parsed_lines(path.read_bytes(), name=str(path)):
        if not isinstance(row.get("key"), str) or not set(row.get("tags") or [""]) <= MEASURED:
            raise ValueError(f"{path}: is no {NEEDS} of a measurement: {json.dumps(row)[:80]}")
        tags[row["key"]] = list(row["tags"])
    return tags


def _records(
    index: ShardIndex, *, tags: Mapping[str, Sequence[str]], only: Collection[str], counts: Counter[str]
) -> Iterator[Record]:
    """Yield the shard's records, media as they are; those without an item that is kept are left out."""
    for _, record in copies(index):
        key, items = record.key, []
        for number, item in enumerate(record.content["items"]):
            mine = tags.get(f"{key}/{number}", ())
            counts.update(mine)
            if only and not set(mine) & set(only):
                continue
            tagged = _tagged(item, tags=mine)
            if not mine and tagged is not item:
                counts[_LOOSE] += 1
            items.append(tagged)
        if items:
            yield replace(record, content={**record.content, "items": items})


def _tagged(item: Any, *, tags: Sequence[str]) -> Any:
    """Return the item with these as its only tags of that kind: `needs:audio` in a copy says what was measured."""
    given = item.get("tags") or [] if isinstance(item, dict) else []
    own = [tag for tag in given if tag not in MEASURED]
    return {**item, "tags": [*own, *tags]} if tags or len(own) < len(given) else item
