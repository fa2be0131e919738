"""All randomness of the data's order: raw Philox words keyed by what they decide (seed, source, pass, purpose).

Counter-based, so any epoch, and any place of it, can be drawn without those before it; and raw words, unlike the
distributions of numpy's Generator, are the same in every numpy version.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
"""Constants of Philox 4x64-10 (Salmon and others, 2011), as numpy's has them."""
_FEISTEL = 6
"""Rounds of a keyed permutation; four make one that no polynomial test tells from a random one, two are spare."""
_FEW = 4
"""So many times as many words as are wanted are drawn in order: the generator is faster than arithmetic on arrays."""
_32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def words(count: int, *key: object) -> Words:
    """Return (count,) random 64-bit words, a pure function of the key."""
    return np.random.Philox(key=_key(*key)).random_raw(count)


def words_at(places: Ints, count: int, *key: object) -> Words:
    """Return `words(count, *key)[places]`, in time and memory that depend on the number of places alone."""
    if count <= _FEW * len(places):
        return words(count, *key)[places]
    at = places.astype(np.uint64)
    counters = [(at >> np.uint64(2)) + np.uint64(1), *(np.zeros(len(at), dtype=np.uint64) for _ in range(3))]
    number = _key(*key)
    drawn = _philox(counters, [np.uint64(number & (2**64 - 1)), np.uint64(number >> 64)])
    return np.choose((at & np.uint64(3)).astype(np.int64), drawn)


def uniforms(count: int, *key: object) -> npt.NDArray[np.float64]:
    """Return (count,) numbers in (0, 1)."""
    return _uniform(words(count, *key))


def uniforms_at(places: Ints, count: int, *key: object) -> npt.NDArray[np.float64]:
    """Return `uniforms(count, *key)[places]`, as `words_at` does."""
    return _uniform(words_at(places, count, *key))


def permutation(count: int, *key: object) -> Ints:
    """Return a random order of 0..count-1."""
    return np.argsort(words(count, *key), kind="stable")


def shuffled(places: Ints, count: Any, *key: object, tweak: Any = 0) -> Ints:
    """Return what stands at these places of a random order of 0..count-1, without making the others.

    Args:
        places: below `count`.
        count: of the order; an array of the shape of `places` where every place is one of another order.
        key: of the order.
        tweak: number of the order, where there are many with one key; may be an array too.
    """
    limit = np.broadcast_to(np.asarray(count, dtype=np.uint64), places.shape)
    numbers = np.broadcast_to(np.asarray(tweak, dtype=np.uint64), places.shape)
    half = np.uint64(max(1, (int(limit.max(initial=1)) - 1).bit_length() + 1) // 2 or 1)
    keys = words(_FEISTEL, *key, "rounds")
    values = places.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):  # a value beyond `count` is mapped on until it falls inside: cycle walking
        values[outside] = _feistel(values[outside], half=half, keys=keys, numbers=numbers[outside])
        outside = outside[values[outside] >= limit[outside]]
    return values.astype(np.int64)


def _key(*key: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:16], "little")


def _uniform(drawn: Words) -> npt.NDArray[np.float64]:
    return ((drawn >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _philox(counter: list[Words], key: list[np.uint64]) -> list[Words]:
    """Return the four words of each block."""
    for number in range(_ROUNDS):
        low = [part * np.uint64(factor) for part, factor in zip(counter[::2], _MULTIPLIERS, strict=True)]
        high = [_high(part, factor) for part, factor in zip(counter[::2], _MULTIPLIERS, strict=True)]
        rounds = [np.uint64((int(part) + number * weyl) % 2**64) for part, weyl in zip(key, _WEYL, strict=True)]
        counter = [high[1] ^ counter[1] ^ rounds[0], low[1], high[0] ^ counter[3] ^ rounds[1], low[0]]
    return counter


def _high(values: Words, factor: int) -> Words:
    """Return the upper 64 bits of each product, from products of halves."""
    right, left = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
    low, high = values & _LOW, values >> _32
    middle = high * right + ((low * right) >> _32)
    return high * left + (middle >> _32) + ((low * left + (middle & _LOW)) >> _32)


def _feistel(values: Words, *, half: np.uint64, keys: Words, numbers: Words) -> Words:
    """Return a permutation of the numbers of 2 * half bits, another for every number."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        mixed = (right ^ key) * np.uint64(0x9FB21C651E98DF25) + numbers * np.uint64(0xD6E8FEB86659FD93)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed ^ (mixed >> _32)) & mask)
    return (left << half) | right
