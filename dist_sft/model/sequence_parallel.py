"""Ranks that work on one pack together (DeepSpeed Ulysses: Jacobs et al., 2023, section 3).

Each of N neighbours holds T/N consecutive tokens of a pack. Within attention it holds all T tokens of 1/N of the heads
instead: what keeps samples apart there sees the whole pack. The gradient of an exchange is the exchange back.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class SequenceParallelGroup:
    """size: N; rank: this one's place among them, 0..N-1; group: their process group, None for a rank on its own."""

    size: int = 1
    rank: int = 0
    group: Any = None

    @classmethod
    def form(cls, size: int) -> "SequenceParallelGroup":
        """Groups of `size` ranks that follow one another. A collective of all ranks; size divides the world."""
        if size == 1:
            return cls()
        rank, world = dist.get_rank(), dist.get_world_size()
        groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world, size)]
        return cls(size, rank % size, groups[rank // size])

    def part(self, tokens: int) -> slice:
        """Where this rank's tokens stand in a pack."""
        assert tokens % self.size == 0, f"{tokens} tokens cannot be split between {self.size} ranks"
        share = tokens // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """query [T/N, H, D], key and value [T/N, G, D] -> [T, H/N, D] and [T, G/N, D]; one exchange.

        Where there are fewer heads of keys than ranks (N a multiple of G), each goes to N/G ranks: [T, 1, D].
        """
        if self.size == 1:
            return query, key, value
        repeat = max(1, self.size // key.shape[1])
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        parts = [tensor.unflatten(1, (self.size, -1)) for tensor in (query, key, value)]  # [T/N, N, heads/N, D]
        joined = torch.cat(parts, dim=2).transpose(0, 1)
        exchanged = _Exchange.apply(joined, self.group).flatten(0, 1)  # [N, T/N, ...] -> [T, ...]
        query, key, value = exchanged.split([part.shape[2] for part in parts], dim=1)
        return query, key, value

    def to_tokens(self, output: Tensor) -> Tensor:
        """[T, H/N, D] -> [T/N, H, D]."""
        if self.size == 1:
            return output
        exchanged = _Exchange.apply(output.unflatten(0, (self.size, -1)), self.group)  # [N, T/N, H/N, D]
        return exchanged.transpose(0, 1).flatten(1, 2)

    def gather(self, values: Tensor) -> Tensor:
        """[T/N, ...] of each -> [T, ...] on all; without gradients."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values.contiguous(), group=self.group)
        return torch.cat(parts)


class _Exchange(torch.autograd.Function):
    """Row j of [N, ...] goes to neighbour j, and its row i comes from neighbour i."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _exchanged(values, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchanged(gradients[0], ctx.group), None


def _exchanged(values: Tensor, group: Any) -> Tensor:
    values = values.contiguous()
    received = torch.empty_like(values)
    dist.all_to_all_single(received, values, group=group)
    return received
