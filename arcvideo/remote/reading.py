"""Ranges of remote shards: from what is read ahead, from what is held on disk, or asked for now."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from weakref import WeakSet

from arcvideo.hidden import hidden
from arcvideo.remote.held import Held
from arcvideo.remote.links import Link, read_link, remove_link
from arcvideo.remote.origin import Changed, NoRanges, Origin, origin_of
from arcvideo.remote.patience import Broken, Ended, Patience, Refused
from arcvideo.remote.settings import ShardCacheSettings
from arcvideo.remote.stream import Stream

_FEW = 2
"""Further tries at most for what can be done without."""
_SETTINGS: dict[Path, ShardCacheSettings] = {}
"""Folder of links -> how its files are read, as this process was told."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A range of a remote shard."""

    path: Path
    """Of the link."""
    offset: int
    size: int


def use(settings: ShardCacheSettings, *, root: Path) -> None:
    """Read what the links of a folder stand for with these settings, in this process."""
    if _SETTINGS.get(root) != settings:
        _SETTINGS[root] = settings
        _held.cache_clear()


def settings_of(path: Path) -> ShardCacheSettings:
    """Return how the file that a link stands for is read."""
    return _of_folder(path.parent)


def _of_folder(root: Path) -> ShardCacheSettings:
    return _SETTINGS.get(root) or ShardCacheSettings(path=str(root))


@lru_cache(maxsize=8)
def _held(root: Path) -> Held:
    return Held(root, max_bytes=int(_of_folder(root).max_gib * 2**30))


@lru_cache(maxsize=1 << 12)
def _origin(url: str, stall_seconds: float) -> Origin:
    origin = origin_of(url, stall_seconds=stall_seconds)
    assert origin is not None, "only what can be read by ranges has a link"
    return origin


def opened_stream(path: Path, link: Link, *, advance: Callable[[int], object] | None = None) -> Stream:
    """Return the remote shard, to be read from front to back."""
    settings = settings_of(path)
    origin = _origin(link.url, settings.stall_seconds)
    patience = Patience(link.url, settings=settings)
    return Stream(origin, identity=link.identity, patience=patience, advance=advance)


def confirm(path: Path, link: Link) -> None:
    """Return when the remote file is still the one of the link.

    Raises:
        Changed: it is not; the link is removed, so that the next to open the shard looks anew.
    """
    settings = settings_of(path)
    patience, origin = Patience(link.url, settings=settings), _origin(link.url, settings.stall_seconds)
    try:
        difference = link.identity.difference(patience.answer(origin.identity))
    except NoRanges as error:
        raise Refused(f"{link.url}: its server does not give parts of files any more") from error
    except Refused as error:
        raise patience.named(error) from error
    if difference:
        raise changed(path, link, difference)


def changed(path: Path, link: Link, difference: str) -> Changed:
    """Return the error of a remote shard that is not what was indexed; its link is removed."""
    why = (
        f"{link.url}: changed since it was indexed ({difference}); start again, it is then indexed anew, or put the "
        "old file back"
    )
    remove_link(path, why=why)
    return Changed(why)


def read_range(path: Path, link: Link, *, offset: int, size: int) -> bytes:
    """Return bytes of a remote shard, from what was read ahead or held where that is possible.

    Raises:
        Changed: it is not the file that was indexed.
        Refused: it cannot be read, also after all tries.
        Ended: this thread was told to wait no longer.
    """
    span = Span(path=path, offset=offset, size=size)
    data = (_COMING.take(span) or _Flight(span, link=link)).landed()
    return _range(span, link, ended=threading.Event()) if data is None else data


def read_once(path: Path, link: Link, *, offset: int, size: int) -> bytes:
    """Return bytes of a remote shard that nobody will want again: as `read_range`, but nothing of them is kept."""
    return _asked(Span(path=path, offset=offset, size=size), link, ended=threading.Event())


def read_beside(path: Path, url: str, *, most: int) -> bytes:
    """Return a whole small file, asked for as the links of the folder of `path` are, with few tries.

    Raises:
        Refused: there is none, or none that can be read, or it has more than `most` bytes.
        Changed: it changed meanwhile.
    """
    settings = settings_of(path)
    patience = Patience(url, settings=replace(settings, retries=min(settings.retries, _FEW)))
    origin = _origin(url, settings.stall_seconds)
    try:
        identity = patience.answer(origin.identity)
    except NoRanges:  # some servers say so of an empty file, and of a page that says that there is no file
        raise Refused(f"{url}: its server does not give it in parts") from None
    if identity.size > most:
        raise Refused(f"{url}: has {identity.size} bytes, at most {most} were expected")
    return patience.answer(lambda: b"".join(origin.stream(0, identity.size, of=identity)))


def _range(span: Span, link: Link, *, ended: threading.Event) -> bytes:
    held, name, offset, size = _held(span.path.parent), _name(link), span.offset, span.size
    data = held.load(name, offset=offset, size=size)
    if data is None:
        data = _asked(span, link, ended=ended)
        held.save(name, data, offset=offset)
    return data


@lru_cache(maxsize=1 << 12)
def _name(link: Link) -> str:
    """Return the name of a remote file's parts on disk; another file under the same URL has another."""
    return hashlib.sha256(repr((hidden(link.url), link.identity)).encode()).hexdigest()[:24]


def _asked(span: Span, link: Link, *, ended: threading.Event) -> bytes:
    path, offset, size = span.path, span.offset, span.size
    settings = settings_of(path)
    patience = Patience(link.url, settings=settings, ended=ended)
    origin = _origin(link.url, settings.stall_seconds)
    data = bytearray()
    while len(data) < size:
        try:
            for piece in origin.stream(offset + len(data), offset + size, of=link.identity):
                data += piece
                patience.progress(len(piece))
        except Broken as error:
            patience.broken(error)
        except Changed as error:
            raise changed(path, link, str(error)) from error
        except Refused as error:
            raise Refused(
                f"{link.url}: cannot be read: {error}; once it can be, start again: the run goes on from its newest "
                "checkpoint"
            ) from error
    return bytes(data)


class _Coming:
    """Ranges that are read before somebody asks, as many at once as the settings say, in the order of need."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: OrderedDict[Span, None] = OrderedDict()
        self._flying: dict[Span, _Flight] = {}
        self._limit = 0

    def want(self, spans: Iterable[Span], *, limit: int) -> None:
        with self._lock:
            self._limit = limit
            for span in spans:
                if span not in self._flying:
                    self._wanted[span] = None
            self._start()

    def take(self, span: Span) -> _Flight | None:
        """Return a range that is under way; None when nobody wanted it, or nobody began it yet."""
        with self._lock:
            self._wanted.pop(span, None)
            flight = self._flying.pop(span, None)
            self._start()
        return flight

    def forget(self, spans: Iterable[Span] | None) -> None:
        with self._lock:
            for span in [*self._wanted, *self._flying] if spans is None else spans:
                self._wanted.pop(span, None)
                flight = self._flying.pop(span, None)
                if flight is not None:
                    flight.ended.set()
            self._start()

    def _start(self) -> None:
        """Begin with what is wanted next; what nobody has taken yet counts too, so that memory is bounded."""
        while self._wanted and len(self._flying) < self._limit:
            span, _ = self._wanted.popitem(last=False)
            self._flying[span] = _Flight(span)


class _Flight:
    """A range that is being read by a thread of its own, so that whoever waits for it can stop waiting.

    The thread does not keep the process alive: it may be waiting for a server that has gone.
    """

    def __init__(self, span: Span, *, link: Link | None = None) -> None:
        self._span, self._link = span, link
        self._future: Future[bytes | None] = Future()
        self.ended = threading.Event()
        """Set when nobody waits for it any more: it is given up before its next try."""
        threading.Thread(target=self._fly, name="remote", daemon=True).start()

    def landed(self) -> bytes | None:
        """Return the range when it is there; None for a path that is a whole copy.

        Raises:
            Ended: this thread was told to wait no longer.
        """
        here, ready = threading.current_thread(), threading.Event()
        with _waiting_lock:
            if here not in _halted:
                _waiting[here] = ready
                self._future.add_done_callback(lambda _: ready.set())
        try:
            if here in _waiting:
                ready.wait()
        finally:
            with _waiting_lock:
                _waiting.pop(here, None)
            if not self._future.done():
                self.ended.set()
        if not self._future.done():
            raise Ended
        return self._future.result()

    def _fly(self) -> None:
        try:
            link = self._link or read_link(self._span.path)
            data = None if link is None else _range(self._span, link, ended=self.ended)
            self._future.set_result(data)
        except BaseException as error:
            self._future.set_exception(error)


_waiting: dict[threading.Thread, threading.Event] = {}
_waiting_lock = threading.Lock()
_halted: WeakSet[threading.Thread] = WeakSet()


def halt(threads: Iterable[threading.Thread]) -> None:
    """Let threads wait for remote shards no longer, now and later: what they read ends with Ended at once."""
    with _waiting_lock:
        for thread in threads:
            _halted.add(thread)
            if thread in _waiting:
                _waiting[thread].set()


_COMING = _Coming()
want = _COMING.want
"""Read ranges ahead of need, several at once."""
forget = _COMING.forget
"""Give up ranges that were wanted and not taken; None gives up all."""
