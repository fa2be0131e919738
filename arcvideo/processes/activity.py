"""What each rank of a run is doing, where the others can read it: one line in `logs/rank_N.doing`, kept up to date.

A rank that was killed or stopped tells nobody what it did. Its line does, and the count of beats in it, which a thread
raises every second, says whether the process still lives, on whichever machine. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from arcvideo.hidden import plain

LOST_EXIT_CODE = 87
"""Exit status of a rank that goes no further because another one is gone."""
HANG_EXIT_CODE = 86
"""Exit status of a rank that has waited for `runner.hang_seconds`."""
BEAT_SECONDS = 1.0
"""Between two beats of a rank that lives."""
_LOOK_SECONDS, _FAR_SECONDS = 3.0, 12.0
"""Without a beat in this time a rank does not answer; the latter for one on another machine."""
_SYNC_SECONDS = 5.0
"""Between two beats that are sure to leave this machine: a network disk keeps writes for half a minute."""
_BYTES = 2048
_AGAIN = "start the same command again: it continues from the newest checkpoint"

GONE, ABSENT, STOPPED, SILENT, THERE = "is gone", "never came", "is stopped", "does not answer", "is there"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one rank looks like to another."""

    rank: int
    state: str
    """One of GONE, ABSENT, STOPPED, SILENT and THERE."""
    doing: str = "nothing it told of"
    seconds: float = 0.0
    """Since it began that."""
    waits: bool = False
    """Whether it waits for the others in a collective."""
    ended: bool = False
    """Whether it has taken its leave: what it had to say of its end, it has said."""

    @property
    def silenced(self) -> bool:
        """Whether nothing more will come from it."""
        return self.state != THERE or self.ended

    def line(self, *, word: str = "") -> str:
        """Return it as part of a line."""
        return f"rank {self.rank} {word or self.state}: {self.doing}, for {self.seconds:.0f} s"


class Activity:
    """What this process does, for the other ranks; while entered, `here()` returns it."""

    def __init__(self, logs: Path, *, rank: int, ranks: int, say: Callable[[str], None], patience: float = 0.0) -> None:
        """Prepare.

        Args:
            logs: folder that all ranks share; receives `rank_N.doing`.
            rank: of this process.
            ranks: how many there are.
            say: tells a person a line.
            patience: seconds that this rank waits for others none of which answers; 0 for ever.
        """
        self.logs, self.rank, self.ranks, self.patience, self._say = logs, rank, ranks, patience, say
        self._what, self._beside, self._waits = "starting", "", ""
        self._keys: tuple[str, ...] = ()
        self._at, self._waits_since, self._beats = time.time(), 0.0, 0
        self._file: int | None = None
        self._lock, self._end = threading.Lock(), threading.Event()
        self._who = {"pid": os.getpid(), "born": _born(os.getpid()), "machine": _machine()}

    def __enter__(self) -> Activity:
        global _HERE
        with contextlib.suppress(OSError):
            self.logs.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path(self.rank), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        self._tell()
        _HERE = self
        threading.Thread(target=self._live, name="activity", daemon=True).start()
        if self.ranks > 1:
            threading.Thread(target=self._sync, name="activity on the disk", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _HERE
        _HERE = None
        self.leave()

    def leave(self) -> None:
        """Say that this rank ends and has told why, if there was anything to tell."""
        self._end.set()
        self._tell(ended=True)

    def note(self, what: str, keys: Sequence[str] = ()) -> None:
        """Tell the others what begins now, with which samples."""
        self._what, self._keys, self._at = what, tuple(keys[:8]), time.time()
        self._tell()

    def beside(self, what: str) -> None:
        """Tell what a thread does beside; empty for nothing."""
        self._beside = what
        self._tell()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Tell that this rank waits for others while the block runs."""
        before = self._waits
        self._waits, self._waits_since = what, time.monotonic()
        self._tell()
        try:
            yield
        finally:
            self._waits = before
            self._tell()

    def look(self) -> list[Seen]:
        """Return how all ranks are; takes some seconds unless one is plainly gone or stopped."""
        first = [self._read(rank) for rank in range(self.ranks)]
        seen = [self._seen(rank, first[rank], first[rank]) for rank in range(self.ranks)]
        if any(peer.state in (GONE, STOPPED) and not peer.ended for peer in seen):
            return seen
        far = any(record and record["machine"] != self._who["machine"] for record in first)
        time.sleep(_FAR_SECONDS if far else _LOOK_SECONDS)
        return [self._seen(rank, self._read(rank), first[rank], looked=True) for rank in range(self.ranks)]

    def lost(self) -> list[Seen]:
        """Return the ranks that are gone without a word; waits a little for the kernel to end a process."""
        for _ in range(20):
            seen = [self._seen(rank, record := self._read(rank), record) for rank in range(self.ranks)]
            if gone := [peer for peer in seen if peer.state == GONE and not peer.ended]:
                return gone
            time.sleep(0.1)
        return [peer for peer in self.look() if peer.state in (GONE, SILENT) and not peer.ended]

    def log(self, seen: Sequence[Seen]) -> None:
        """Write how the ranks were into this rank's log, and into that of each which can no longer do so."""
        with contextlib.suppress(OSError):
            for peer in seen:
                places = {self.rank} if peer.state == THERE else {self.rank, peer.rank}
                for place in places:
                    with (self.logs / f"rank_{place}.log").open("a", encoding="utf-8") as file:
                        file.write(plain(f"as rank {self.rank} saw it: {peer.line()}\n"))

    def speaks(self, seen: Sequence[Seen]) -> bool:
        """Return whether this rank is the first of those that can still tell a person."""
        return self.rank == min([self.rank, *(peer.rank for peer in seen if peer.state == THERE and not peer.ended)])

    # --- inside ---

    def _live(self) -> None:
        heard: dict[int, tuple[Any, float]] = {}
        looked = 0.0
        while not self._end.wait(BEAT_SECONDS):
            self._beats += 1
            self._tell()
            now = time.monotonic()
            if not (self._waits and self.patience and self.ranks > 1):
                heard.clear()
            elif now - looked >= min(self.patience / 8, 30.0):
                looked = now
                for rank in range(self.ranks):
                    beat = (self._read(rank) or {}).get("beats")
                    if rank not in heard or heard[rank][0] != beat:
                        heard[rank] = (beat, now)
                patient = now - self.patience
                if self._waits_since < patient and any(since < patient for _, since in heard.values()):
                    self._give_up()

    def _sync(self) -> None:
        """Beside the beats: on a disk that takes minutes they must not stand still."""
        while not self._end.wait(_SYNC_SECONDS):
            with contextlib.suppress(OSError, TypeError):
                os.fsync(self._file)  # type: ignore[arg-type]

    def _give_up(self) -> None:
        """End this process: it waits for a rank that no longer lives."""
        seen = self.look()
        bad = [peer for peer in seen if peer.state != THERE and not peer.ended]
        if not bad:
            return
        self.log(seen)
        self.leave()
        if self.speaks(seen):
            line = f"error on rank {self.rank}: {blame(seen)}; waited for {self.patience:g} s (runner.hang_seconds)"
            self._say(f"{line}; {_AGAIN}")
        else:
            time.sleep(_LOOK_SECONDS)  # a launcher ends all as soon as one has ended
        os._exit(HANG_EXIT_CODE)

    def _path(self, rank: int) -> Path:
        return self.logs / f"rank_{rank}.doing"

    def _tell(self, *, ended: bool = False) -> None:
        with self._lock:
            if self._file is None:
                return
            record = {"rank": self.rank, "doing": self._told(), "at": round(self._at, 3), "beats": self._beats,
                      "waits": bool(self._waits), "ended": ended, **self._who}  # fmt: skip
            row = json.dumps(record)[: _BYTES - 1]
            # A full disk or a vanished mount is for whoever has something to lose there.
            with contextlib.suppress(OSError):
                os.pwrite(self._file, f"{row:<{_BYTES - 1}}\n".encode(), 0)
            if ended:
                os.close(self._file)
                self._file = None

    def _told(self) -> str:
        parts = [self._what[:200]]
        parts += [f"waiting {self._waits}"] if self._waits else []
        parts += [f"{self._beside} beside it"] if self._beside else []
        parts += [f"samples {', '.join(key[:64] for key in self._keys)}"] if self._keys else []
        return ", ".join(parts)

    def _read(self, rank: int) -> Mapping[str, Any] | None:
        for _ in range(3):
            try:
                record = json.loads(self._path(rank).read_text())
                return record if isinstance(record, dict) else None
            except OSError:
                return None
            except ValueError:
                time.sleep(0.01)  # it is being written
        return None

    def _seen(
        self, rank: int, record: Mapping[str, Any] | None, before: Mapping[str, Any] | None, *, looked: bool = False
    ) -> Seen:
        if record is None:
            return Seen(rank=rank, state=ABSENT, seconds=time.time() - self._at)
        state = THERE
        if record["machine"] == self._who["machine"]:
            state = _state(int(record["pid"]), born=record["born"])
        if state == THERE and looked and rank != self.rank and before is not None:
            state = SILENT if record["beats"] == before["beats"] else THERE
        return Seen(
            rank=rank,
            state=state,
            doing=str(record["doing"]),
            seconds=max(time.time() - float(record["at"]), 0.0),
            waits=bool(record["waits"]),
            ended=bool(record["ended"]),
        )


_HERE: Activity | None = None
_NOW = ("starting", time.monotonic())
"""What this process does, and since when."""


def here() -> Activity | None:
    """Return what this process tells its peers through; None for one that has none."""
    return _HERE


def note(what: str, keys: Sequence[str] = ()) -> None:
    """Tell what begins now, with which samples: to the peers, if there are any, and to whoever asks `doing`."""
    global _NOW
    _NOW = (what, time.monotonic())
    if _HERE is not None:
        _HERE.note(what, keys)


def doing() -> tuple[str, float]:
    """Return what this process does as far as it told, and the second of the monotonic clock in which it began that."""
    return _NOW


def beside(what: str) -> None:
    """Tell the peers, if there are any, what a thread of this process does; empty for nothing."""
    if _HERE is not None:
        _HERE.beside(what)


@contextmanager
def waiting(what: str = "for the other ranks") -> Iterator[None]:
    """Tell the peers that this rank waits for them while the block runs."""
    if _HERE is None:
        yield
        return
    with _HERE.waiting(what):
        yield


def blame(seen: Sequence[Seen], *, waits: Sequence[int] = ()) -> str:
    """Return who keeps the others waiting and with what.

    Args:
        seen: all ranks.
        waits: ranks known to wait for the others besides those that say so.
    """
    bad = [peer for peer in seen if peer.state != THERE and not peer.ended]
    if bad:
        return "; ".join(peer.line() for peer in bad)
    busy = [peer for peer in seen if not peer.waits and not peer.ended and peer.rank not in waits]
    if busy:
        return max(busy, key=lambda peer: peer.seconds).line(word="is slow")
    return "all ranks wait for each other: " + "; ".join(peer.line(word="waits") for peer in seen)


def lost_line(lost: Sequence[Seen]) -> str:
    """Return what a rank says that cannot go on without those."""
    return (
        f"{'; '.join(peer.line() for peer in lost)}. Find out what ended it (the memory of its machine?), then {_AGAIN}"
    )


def _machine() -> str:
    """Return what two processes have in common that see each other in /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"unknown {os.getpid()}"


def _born(pid: int) -> str:
    """Return when a process began, in ticks; empty when it is not there."""
    stat = _stat(pid)
    return "" if stat is None else stat[1]


def _state(pid: int, *, born: str) -> str:
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX" or stat[1] != born:
        return GONE
    return STOPPED if stat[0] in "Tt" else THERE


def _stat(pid: int) -> tuple[str, str] | None:
    """Return state and beginning of a process, as the system has them; None when it is not there."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None
