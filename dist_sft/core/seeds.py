"""Counter-based randomness: a number for (seed, purpose, counters), the same on every platform, for ever.

Nothing here has state. numpy's `Generator` streams are not promised to stay the same between versions, so the
mixing function is our own: splitmix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014, figure 16).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 of each value: a bijection of uint64 whose output bits look independent of the input's."""
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX1
        z = (z ^ (z >> np.uint64(27))) * _MIX2
        return z ^ (z >> np.uint64(31))


def key(seed: int, purpose: str, *counters: int) -> int:
    """A uint64 for one purpose, e.g. key(0, "neftune", step, sample). Counters may be any 64-bit integers."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8, key=(seed & (2**64 - 1)).to_bytes(8, "little")).digest()
    state = np.array([int.from_bytes(digest, "little")], np.uint64)
    for counter in counters:
        state = mix64(state ^ mix64(np.array([counter & (2**64 - 1)], np.uint64)))
    return int(state[0])


def permutation(n: int, key_: int) -> NDArray[np.int64]:
    """int64[n]: a uniformly random order of 0..n-1 that depends on n and the key alone."""
    hashes = mix64(np.arange(n, dtype=np.uint64) ^ np.uint64(key_))
    return np.argsort(hashes, kind="stable").astype(np.int64)
