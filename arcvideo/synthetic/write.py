"""Scripts -> WebDataset shards: `train-000000.tar`, `test-000000.tar`, ... and `dataset.json` when all is written."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from arcvideo.processes.children import end_with_parent, start_deaf
from arcvideo.synthetic.encode import encode
from arcvideo.synthetic.questions import letter_items, questions
from arcvideo.synthetic.script import Script, draw_script
from arcvideo.synthetic.settings import TinyShortsSettings

SOURCE = "tiny_shorts"
_FACTS = "dataset.json"
_CHUNK = 8

Progress = Callable[[int], None]
"""Called with the number of clips finished since the last call."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What `write_dataset` left in a directory."""

    root: Path
    shards: tuple[str, ...]
    digest: str
    """sha256 over the digests of the shards: equal data, equal digest."""
    written: bool
    """False when the directory already held this data set."""


@dataclass(frozen=True, kw_only=True)
class _Shard:
    name: str
    split: str
    first: int
    count: int


def write_dataset(
    out: Path, *, settings: TinyShortsSettings, workers: int = 2, progress: Progress | None = None
) -> Dataset:
    """Makes the shards, or finds them there already.

    Args:
        out: directory; created. It must be empty, or hold a TinyShorts data set.
        workers: processes; 1 stays in this one.
        progress: told about finished clips.

    Raises:
        ValueError: `out` holds something else.
    """
    identity = _identity(settings)
    present = _present(out, identity=identity)
    if present is not None:
        return present
    out.mkdir(parents=True, exist_ok=True)
    digests: dict[str, dict[str, Any]] = {}
    with _members(workers) as members:
        for shard in _shards(settings):
            digests[shard.name] = _write_shard(out, shard, members(shard, settings.seed), progress or _ignore)
    digest = hashlib.sha256("".join(entry["sha256"] for entry in digests.values()).encode()).hexdigest()
    facts = {"source": SOURCE, "settings": asdict(settings), "identity": identity, "digest": digest, "shards": digests}
    _replace(out / _FACTS, json.dumps(facts, indent=2).encode() + b"\n")
    return Dataset(root=out, shards=tuple(digests), digest=digest, written=True)


def record(script: Script) -> dict[str, Any]:
    """Return the JSON of a clip (docs/data-format.md); `truth` is the whole script."""
    return {"id": script.key, "source": SOURCE, "title": "", "items": questions(script), "truth": asdict(script)}


def _shards(settings: TinyShortsSettings) -> list[_Shard]:
    shards = []
    for split, total in (("train", settings.clips), ("test", settings.test_clips), ("text", settings.texts)):
        for number, first in enumerate(range(0, total, settings.clips_per_shard)):
            count = min(settings.clips_per_shard, total - first)
            shards.append(_Shard(name=f"{split}-{number:06d}.tar", split=split, first=first, count=count))
    return shards


_Member = tuple[str, bytes]
_Members = Callable[[_Shard, int], Iterator[list[_Member]]]


@contextmanager
def _members(workers: int) -> Iterator[_Members]:
    """Yield a function that makes the tar members of a shard, clip by clip in order, here or in `workers` processes."""
    if workers <= 1:
        yield lambda shard, seed: map(partial(_clip_members, shard.split, seed), _indices(shard))
        return
    # spawn: a forked child would inherit the threads and locks of whatever framework the caller has started.
    context = multiprocessing.get_context("spawn")
    # When this process is ended by a signal, the process that then tidies up behind it would complain on the terminal.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    start = partial(end_with_parent, signal.SIGKILL, os.getpid())  # a killed parent cannot tell them to end
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start) as pool:
        try:
            start_deaf(pool, workers=workers)
            yield lambda shard, seed: pool.map(
                partial(_clip_members, shard.split, seed), _indices(shard), chunksize=_CHUNK
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a full disk is told now, not when all clips of the shard are made
            raise


def _indices(shard: _Shard) -> range:
    return range(shard.first, shard.first + shard.count)


def _clip_members(split: str, seed: int, index: int) -> list[_Member]:
    if split == "text":
        return [_text_member(seed, index)]
    script = draw_script(split=split, index=index, seed=seed)
    extension, media = encode(script)
    text = json.dumps(record(script), ensure_ascii=False, sort_keys=True).encode()
    return [(f"{script.key}.{extension}", media), (f"{script.key}.json", text)]


def _text_member(seed: int, index: int) -> _Member:
    """Return a record without media."""
    key = f"text-{index:06d}"
    content = {"id": key, "source": SOURCE, "text_only": True, "items": letter_items(seed=seed, index=index)}
    return f"{key}.json", json.dumps(content, ensure_ascii=False, sort_keys=True).encode()


def _write_shard(out: Path, shard: _Shard, clips: Iterator[list[_Member]], progress: Progress) -> dict[str, Any]:
    """Writes one tar under a temporary name, then renames it; its size and digest."""
    part = out / f"{shard.name}.part"
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for members in clips:
            for name, content in members:
                entry = tarfile.TarInfo(name)  # fixed owner, mode and time: the bytes depend on the content only
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
            progress(1)
    content_digest = _sha256(part)
    size = part.stat().st_size
    os.replace(part, out / shard.name)
    return {"clips": shard.count, "bytes": size, "sha256": content_digest}


def _identity(settings: TinyShortsSettings) -> str:
    """Hash of the settings and of the generator's source, so that a changed generator is noticed."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for name in ("script", "questions", "draw", "sound", "encode", "write"):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()


def _present(out: Path, *, identity: str) -> Dataset | None:
    """Return the data set in `out` when it is the wanted one and complete; None when `out` is free to be written."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out}: is a file; give a directory")
    facts_file = out / _FACTS
    if not facts_file.exists():
        foreign = [path.name for path in out.iterdir() if not _is_ours(path)] if out.exists() else []
        if foreign:
            raise ValueError(
                f"out={out}: holds other files ({', '.join(sorted(foreign)[:3])}); give an empty directory"
            )
        return None
    try:
        facts = json.loads(facts_file.read_text())
        same = facts["identity"] == identity
        whole = all((out / name).stat().st_size == entry["bytes"] for name, entry in facts["shards"].items())
    except FileNotFoundError:
        return None  # a shard was removed: write them again
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{facts_file}: is not a TinyShorts description ({error!r}); give another directory"
        ) from error
    if not same:
        raise ValueError(
            f"out={out}: holds TinyShorts made with other settings or another version of the generator "
            f"({facts['settings']}); give another directory or delete this one"
        )
    if not whole:
        return None
    return Dataset(root=out, shards=tuple(facts["shards"]), digest=facts["digest"], written=False)


def _is_ours(path: Path) -> bool:
    """Return a shard of an earlier, interrupted run."""
    return path.name.startswith(("train-", "test-", "text-")) and path.name.endswith((".tar", ".part"))


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ignore(count: int) -> None:
    """Progress that nobody watches."""
