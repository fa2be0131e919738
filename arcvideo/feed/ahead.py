"""Families loaded before they are asked for: as many at once as there are decoders, handed out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

J = TypeVar("J")
"""One job: a family."""
L = TypeVar("L")
"""What is made of a job."""
S = TypeVar("S")
"""A step: what is made of all its jobs."""


@dataclass(frozen=True, kw_only=True)
class _UnderWay(Generic[L, S]):
    parts: list[list[Future[L]]]
    whole: Future[S]

    def cancel(self) -> None:
        for part in self.parts:
            for future in part:
                future.cancel()
        self.whole.cancel()


class Ahead(Generic[J, L, S]):
    """`workers` threads that each load one job at a time, whichever step it belongs to, and one thread that joins them.

    Jobs start in the order in which their steps were given. So a step of one clip keeps one decoder busy and leaves
    the others to the steps behind it.
    """

    def __init__(self, *, workers: int, load: Callable[[J], L]) -> None:
        """Start nothing yet.

        Args:
            workers: jobs loaded at once, 1 or more.
            load: makes something of one job; called from any of the threads.
        """
        self._workers = workers
        self._load = load
        self._readers = ThreadPoolExecutor(workers, "data")
        self._joiner = ThreadPoolExecutor(1, "join")
        self._under_way: dict[Hashable, _UnderWay[L, S]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._under_way

    def start(self, key: Hashable, packs: Sequence[Sequence[J]], *, join: Callable[[list[list[L]]], S]) -> None:
        """Begin a step.

        Args:
            key: of the step.
            packs: its jobs.
            join: makes the step from what the jobs gave, in their order.
        """
        parts = [[self._readers.submit(self._load, job) for job in pack] for pack in packs]
        whole = self._joiner.submit(lambda: join([[future.result() for future in part] for part in parts]))
        self._under_way[key] = _UnderWay(parts=parts, whole=whole)

    def keep(self, keys: Iterable[Hashable]) -> None:
        """Give up all steps but these; a job that has begun is finished, and nobody gets it."""
        for key in self._under_way.keys() - set(keys):
            self._under_way.pop(key).cancel()

    def take(self, key: Hashable) -> S:
        """Return a step that was started, when it is complete; it is forgotten here."""
        return self._under_way.pop(key).whole.result()

    def in_order(self, jobs: Iterable[J]) -> Iterator[L]:
        """Yield what each job gives, in their order, with at most one more under way than there are workers."""
        waiting: deque[Future[L]] = deque()
        try:
            for job in jobs:
                waiting.append(self._readers.submit(self._load, job))
                if len(waiting) > self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the threads, after the jobs that have begun."""
        self.keep(())
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._joiner.shutdown(wait=True, cancel_futures=True)
