"""All randomness of the data's order: raw Philox words keyed by what they decide (seed, source, pass, purpose).

Counter-based, so any epoch can be drawn without those before it; and raw words, unlike the distributions of numpy's
Generator, are the same in every numpy version.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def words(count: int, *key: object) -> npt.NDArray[np.uint64]:
    """(count,) random 64-bit words, a pure function of the key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


def uniforms(count: int, *key: object) -> npt.NDArray[np.float64]:
    """(count,) numbers in (0, 1)."""
    return ((words(count, *key) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def permutation(count: int, *key: object) -> npt.NDArray[np.int64]:
    """A random order of 0..count-1."""
    return np.argsort(words(count, *key), kind="stable")
