"""The headers of a tar, one after the other, so that every byte of the file is accounted for.

Read within bounds, because shards come from strangers: no recursion, no pattern search over a header, and no memory
that a header asks for. Python's own reader stops without a word at a zeroed block or at the first of two joined
archives; here whatever is no member is a Gap with its place, and reading goes on behind it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

BLOCK = 512
_EXTENDED = 1 << 20
"""Bytes that an extended header may have: a path is at most 4096, and nothing else in it is wanted."""
_CHAIN = 16
"""Extended headers that one member may have."""
_RECORD = 20 * BLOCK
"""Tar writes whole records of 20 blocks and fills the last one with zeros; `tar -b` chooses others."""
_RECORDS = tuple(BLOCK << power for power in range(6, 12))
"""Records of 32 to 2048 blocks, as people choose them; an archive has whole ones."""
_FIRST_PIECE = 8 * BLOCK
_PIECE = 1 << 20
_MAGIC = b"ustar"
_MAGIC_AT = 257
_PLAIN = b"0\x007"
"""Types of plain files."""
_WITHOUT_DATA = b"123456"
"""Links, devices, folders and pipes: whatever size they state, no data follow."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\3\4": "zip"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A member's header."""

    name: str
    """Bytes that are no UTF-8 are lone surrogates."""
    kind: str
    """file, folder, or other."""
    offset: int
    """Where its data begin."""
    size: int
    has_data: bool = True
    """Whether as many bytes follow as `size` says; behind links, devices, folders and pipes none do."""
    fault: str = ""
    """What is wrong with its extended headers, so that name and size may be false."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Bytes that are no member."""

    reason: str
    """broken_tar, joined_tar, truncated_tar, empty_tar or zero_tail."""
    start: int
    end: int
    detail: str


def walk(path: Path) -> Iterator[Entry | Gap]:
    """Yield the members of a tar in order, and what lies between and behind them other than one end mark.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        descriptor = file.fileno()
        yield from walk_bytes(partial(os.pread, descriptor), size=os.fstat(descriptor).st_size)


def walk_bytes(pread: Callable[[int, int], bytes], *, size: int) -> Iterator[Entry | Gap]:
    """Yield the same of a tar that lies elsewhere.

    Args:
        pread: gives up to so many bytes at a place; places ascend, but for a step back of a few MiB behind damage.
        size: bytes of the tar.
    """
    yield from _Walk(pread, size).entries()


@dataclass
class _Walk:
    pread: Callable[[int, int], bytes]
    size: int
    at: int = 0
    """Where the next header is expected."""

    def entries(self) -> Iterator[Entry | Gap]:
        members = 0
        while True:
            block = self._block(self.at)
            if len(block) < BLOCK:
                what = _no_header(block, at=self.at) if block else "no end mark"
                yield self._gap("truncated_tar", self.size, f"{what}: records behind it are lost; write it again")
                return
            if not block.strip(b"\0"):
                end = self._nonzero(self.at)
                if end >= self.size:
                    yield from self._end(members=members)
                    return
                if _numbers(self._block(end)) is None:
                    yield self._hole("zeroed", start=end)
                    if self.at >= self.size:
                        return
                else:
                    detail = "zeros, then the archive goes on: two tars joined, or a hole; what follows is read"
                    yield self._gap("joined_tar", end, detail)
                    self.at = end
                continue
            member = self._member()
            if member is None:
                yield self._hole(_no_header(block, at=self.at), start=self.at + BLOCK)
                if self.at >= self.size:
                    return
                continue
            members += 1
            yield member
            if member.has_data and member.offset + member.size > self.size:
                yield self._cut(member)
                if self.at >= self.size:
                    return

    def _end(self, *, members: int) -> Iterator[Gap]:
        """Yield what there is to say about the zeros up to the end of the file."""
        if not members:
            yield self._gap("empty_tar", self.size, "zeros and no member: never filled, or lost; write it again")
        elif not _is_padding(self.size - self.at, size=self.size):
            detail = "more zeros than a tar ends with: never filled, or records in it are lost; write it again"
            yield self._gap("zero_tail", self.size, detail)

    def _cut(self, member: Entry) -> Gap:
        """Return the bytes behind a header that states more than the file holds, up to the next header in them."""
        self.at = member.offset
        end = self._header(member.offset)
        what = f"a member of {member.size} bytes begins"
        if end < self.size:
            gap = self._gap("broken_tar", end, f"{what}, more than there are; what follows its header is read")
        else:
            gap = self._gap("truncated_tar", end, f"{what}: records behind it are lost; write it again")
        self.at = end
        return gap

    def _hole(self, what: str, *, start: int) -> Gap:
        """Return the bytes up to the next header, looked for from `start`; reading goes on there."""
        end = self._header(start)
        lost = "records in it are lost" if end < self.size else "records in it and behind it are lost"
        gap = self._gap("broken_tar", end, f"{what}: {lost}; write it again")
        self.at = end
        return gap

    def _gap(self, reason: str, end: int, detail: str) -> Gap:
        return Gap(reason=reason, start=self.at, end=end, detail=f"bytes {self.at} to {end}: {detail}")

    def _member(self) -> Entry | None:
        """Return the member whose headers begin here; None when they are none. Reading goes on behind its data."""
        at, extended, fault = self.at, dict[str, str](), ""
        for _ in range(_CHAIN):
            block = self._block(at)
            numbers = _numbers(block)
            if numbers is None:
                return None
            size, kind = numbers, block[156:157]
            if kind not in b"xgLK":
                break
            if size > _EXTENDED:
                fault = f"an extended header of {size} bytes, the limit is {_EXTENDED}"
            else:
                fault = _extend(extended, self.pread(size, at + BLOCK), kind=kind) or fault
            at += BLOCK + _padded(size)
        else:
            fault, kind = f"more than {_CHAIN} extended headers", b"?"
            block, size = bytes(BLOCK), 0
        try:
            size = int(extended.get("size", size))
        except ValueError:
            fault = f"a size that is no number: {extended['size'][:40]!r}"
        if size < 0:
            fault, size = f"a size below 0: {size}", 0
        entry = _entry(block, kind=kind, extended=extended, offset=at + BLOCK, size=size, fault=fault)
        while kind == b"S" and self._block(at)[482 if at == entry.offset - BLOCK else 504 : 505][:1] == b"\1":
            at += BLOCK  # further blocks of a sparse file's map
        data = _padded(size) if entry.has_data else 0
        self.at = min(at + BLOCK + data, self.size)
        return entry

    def _block(self, at: int) -> bytes:
        return self.pread(BLOCK, at)

    def _nonzero(self, at: int) -> int:
        """Return where the first block from here begins that is not zero; the end of the file when there is none."""
        for piece in self._pieces(at):
            rest = piece.lstrip(b"\0")
            if rest:
                return at + (len(piece) - len(rest)) // BLOCK * BLOCK
            at += len(piece)
        return self.size

    def _header(self, at: int) -> int:
        """Return where the next header from here begins; the end of the file when there is none."""
        for piece in self._pieces(at):
            place = piece.find(_MAGIC, _MAGIC_AT)
            while place >= 0:
                block, beside = divmod(place - _MAGIC_AT, BLOCK)
                start = block * BLOCK
                if not beside and _numbers(piece[start : start + BLOCK]) is not None:
                    return at + start
                place = piece.find(_MAGIC, start + BLOCK + _MAGIC_AT)
            at += len(piece)
        return self.size

    def _pieces(self, at: int) -> Iterator[bytes]:
        """Yield the bytes from here on in whole blocks; a few at first, so that many small holes cost little."""
        count = _FIRST_PIECE
        while piece := self.pread(count, at):
            yield piece
            at, count = at + len(piece), min(2 * count, _PIECE)


def _numbers(block: bytes) -> int | None:
    """Return the size that a header states; None when it is no header."""
    if len(block) < BLOCK:
        return None
    stated, size = _number(block[148:156]), _number(block[124:136])
    if stated is None or size is None:
        return None
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if stated != total:  # some old writers add signed bytes
        high = sum(byte >= 128 for byte in block[:148]) + sum(byte >= 128 for byte in block[156:])
        if stated != total - 256 * high:
            return None
    return size


def _number(text: bytes) -> int | None:
    """Return octal digits, or a big number in base 256; None for anything else and for numbers below 0."""
    if text[:1] == b"\x80":
        number = int.from_bytes(text[1:], "big")
        return number if number < 1 << 62 else None
    digits = text.partition(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)


def _extend(extended: dict[str, str], data: bytes, *, kind: bytes) -> str:
    """Take over what an extended header says of the next member; returns what is wrong with it."""
    if kind == b"L":
        extended["path"] = _text(data.partition(b"\0")[0])
        return ""
    if kind == b"K":
        return ""
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            return "an extended header that is none"
        end = at + int(digits)
        name, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(data) or not equals or data[end - 1 : end] != b"\n":
            return "an extended header that is none"
        extended[_text(name[:100])] = _text(value)
        at = end
    return ""


def _entry(block: bytes, *, kind: bytes, extended: dict[str, str], offset: int, size: int, fault: str) -> Entry:
    name = _text(block[:100].partition(b"\0")[0])
    prefix = _text(block[345:500].partition(b"\0")[0])
    if prefix and block[_MAGIC_AT : _MAGIC_AT + 6] == b"ustar\0" and kind != b"S":
        name = f"{prefix}/{name}"
    name = extended.get("GNU.sparse.name", extended.get("path", name))
    name = name or f"header before byte {offset}"
    sparse = kind == b"S" or any(key.startswith("GNU.sparse") for key in extended)
    folder = kind == b"5" or (kind in (b"\0", b"0") and name.endswith("/"))
    what = "folder" if folder else "file" if kind in _PLAIN and not sparse else "other"
    has_data = kind not in _WITHOUT_DATA
    return Entry(name=name, kind=what, offset=offset, size=size, has_data=has_data, fault=fault)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _is_padding(zeros: int, *, size: int) -> bool:
    """Return whether a whole archive of `size` bytes may end with so many zeros: two blocks and what fills a record."""
    filling = zeros - 2 * BLOCK
    return filling <= _RECORD or any(filling < record and size % record == 0 for record in _RECORDS)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _no_header(block: bytes, *, at: int) -> str:
    packed = next((name for magic, name in _COMPRESSED.items() if block.startswith(magic)), "")
    return f"compressed with {packed}; unpack it, shards are plain tars" if packed and not at else "no tar header"
