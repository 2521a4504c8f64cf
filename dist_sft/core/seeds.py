"""Counter-based randomness: a number for (seed, purpose, counters), the same on every platform, for ever.

Nothing here has state. numpy's `Generator` streams are not promised to stay the same between versions, so the
mixing function is our own: splitmix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014, figure 16).
"""

import hashlib
import math

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


def hashes(n: int, key_: int) -> NDArray[np.uint64]:
    """uint64[n]: a number for each of 0..n-1 that depends on it and on the key alone; no two are equal."""
    return mix64(np.arange(n, dtype=np.uint64) ^ np.uint64(key_))


def permute(indices: NDArray[np.int64], n: int, key_: int) -> NDArray[np.int64]:
    """Where a random permutation of 0..n-1 sends these indices: no table, the same cost for any n.

    A Feistel network over the digits of an index, to base about sqrt(n); what falls outside of 0..n-1 goes round again
    (Black, Rogaway: "Ciphers with arbitrary finite domains", CT-RSA 2002, sections 4 and 5).

    Args:
        indices: int64[K] in [0, n), n < 2**62.
    Returns:
        int64[K] in [0, n), different for different indices.
    """
    return _walked(indices, n, key_, back=False)


def unpermute(indices: NDArray[np.int64], n: int, key_: int) -> NDArray[np.int64]:
    """What `permute` sends to these indices: its inverse, at the same cost."""
    return _walked(indices, n, key_, back=True)


_CHUNK = 1 << 15


def _walked(indices: NDArray[np.int64], n: int, key_: int, back: bool) -> NDArray[np.int64]:
    out = indices.astype(np.uint64)
    for begin in range(0, len(out), _CHUNK):  # what stays in the cache is three times as fast
        chunk = out[begin : begin + _CHUNK]
        todo, values = np.arange(len(chunk)), _feistel(chunk, n, key_, back)
        while True:
            inside = values < np.uint64(n)
            chunk[todo[inside]] = values[inside]
            if inside.all():
                break
            todo, values = todo[~inside], _feistel(values[~inside], n, key_, back)
    return out.view(np.int64)


def _feistel(values: NDArray[np.uint64], n: int, key_: int, back: bool) -> NDArray[np.uint64]:
    """A permutation of [0, a * b), a * b >= n, or its inverse. Few digits mix less in a round, so small n get more."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    high, low = np.divmod(values, np.uint64(b))
    rounds = list(enumerate(hashes(12 if n < 1 << 12 else 8, key_)))
    for number, round_key in reversed(rounds) if back else rounds:
        if number % 2:
            low = _rotated(low, high ^ round_key, b, back)
        else:
            high = _rotated(high, low ^ round_key, a, back)
    return high * np.uint64(b) + low


def _rotated(digit: NDArray[np.uint64], source: NDArray[np.uint64], base: int, back: bool) -> NDArray[np.uint64]:
    """(digit + a number from `source` in [0, base)) mod base; back: minus that number."""
    turn = ((mix64(source) >> np.uint64(32)) * np.uint64(base)) >> np.uint64(32)
    turned = digit + (np.uint64(base) - turn if back else turn)
    return np.where(turned >= np.uint64(base), turned - np.uint64(base), turned)
