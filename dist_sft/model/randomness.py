"""Random numbers for every element of a sample, the same wherever the sample is computed.

An element's number depends on (seed, purpose, step, sample, position in the sample, feature), never on a generator's
state: not on rank, device, packing, accumulation, or whether activations are computed once or again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dist_sft.core import seeds
from dist_sft.model.context import PackContext


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN, _MIX1, _MIX2 = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

CHUNK = {"cpu": 2**16, "cuda": 2**24}
"""Hashes that are made at a time: what fits a core's cache, or keeps the int64 temporaries of a GPU small."""


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's int64 shift would copy the sign bit."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix64(values: Tensor) -> Tensor:
    """`core.seeds.mix64` on int64 tensors, bit for bit: integer products wrap around on every device."""
    z = values + _GOLDEN
    z ^= _shift_right(z, 30)
    z *= _MIX1
    z ^= _shift_right(z, 27)
    z *= _MIX2
    z ^= _shift_right(z, 31)
    return z


def draw(pack: PackContext, purpose: str, width: int, dtype: torch.dtype, turn: Callable[[Tensor], Tensor]) -> Tensor:
    """[T, width]: `turn` of integers, all values of `dtype` equally likely; one stream per purpose.

    A hash of 64 bits gives as many integers as it holds: two of int32, four of int16, eight of int8 (little-endian, as
    all of torch's devices are). turn: elementwise, e.g. to floats, while the integers are still in the cache.
    """
    assert pack.keys is not None, "evaluation draws no random numbers"
    stream = mix64(pack.keys ^ _signed(seeds.key(0, purpose)))
    token = mix64(stream + pack.positions)
    words = torch.arange(-(-width * dtype.itemsize // 8), device=token.device, dtype=torch.int64)
    rows = max(1, CHUNK.get(token.device.type, 2**24) // len(words))
    parts = (mix64(part[:, None] + words).view(dtype)[:, :width] for part in token.split(rows))
    return torch.cat([turn(part) for part in parts])


def signed_unit(integers: Tensor) -> Tensor:
    """int32 -> float32 in (-1, 1): 2**24 values of equal distance whose mean is exactly 0."""
    return (integers >> 8).float().add_(0.5).mul_(2.0**-23)
