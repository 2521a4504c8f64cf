"""What each rank updates, in the same words for every ZeRO stage.

engine ─> Partition: one flat tensor of the optimizer, and which pieces of which parameters lie in it

A checkpoint is made of such pieces. A run of another size, or ZeRO stage, asks for other pieces of the same parameters,
so nothing has to be converted in between.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

STEP, WEIGHT = "step", "weight"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive numbers of a flattened parameter, and where they lie in a partition. count may be 0."""

    parameter: str
    start: int
    count: int
    at: int


@dataclass(frozen=True)
class Partition:
    """A tensor that the optimizer updates.

    values    float32[N], the weights as the optimizer keeps them
    state     of the optimizer for them, by name; empty before the first update
    pieces    what lies in it
    shared    every rank has the same: each saves a part, and all load the whole
    """

    values: Tensor
    state: dict[str, Any]
    pieces: list[Piece]
    shared: bool

    def columns(self) -> dict[str, Tensor]:
        """float32[N]: the weights, and each state of the optimizer that has a number for each of them."""
        return {WEIGHT: self.values.detach().view(-1)} | {
            name: s.view(-1) for name, s in self._tensors().items() if s.shape == self.values.shape and _is_exact(s)
        }

    def rounded(self) -> dict[str, Tensor]:
        """States of another form, e.g. those that are kept in 8 bits: only the same partition can take them up."""
        return {name: s for name, s in self._tensors().items() if s.shape != self.values.shape or not _is_exact(s)}

    def _tensors(self) -> dict[str, Tensor]:
        return {name: s for name, s in self.state.items() if torch.is_tensor(s) and name != STEP}

    @property
    def step(self) -> int | None:
        """Updates that the optimizer has counted; None if it does not count."""
        step = self.state.get(STEP)
        return None if step is None else int(step)

    def to_save(self) -> Iterator[Piece]:
        """The pieces that this rank writes."""
        rank, world = dist.get_rank(), dist.get_world_size()
        for p in self.pieces:
            if self.shared:
                first, last = p.count * rank // world, p.count * (rank + 1) // world
                p = Piece(p.parameter, p.start + first, last - first, p.at + first)
            if p.count:
                yield p


def _is_exact(state: Tensor) -> bool:
    return state.dtype == torch.float32


def partitions(engine: Any) -> list[Partition]:
    """All that this rank updates."""
    optimizer, names = engine.optimizer, {p: name for name, p in engine.module.named_parameters()}
    if engine.zero_optimization_stage() == 3:
        return list(_zero3(optimizer, names))
    if engine.zero_optimization_stage():
        return list(_zero12(optimizer, names))
    state = optimizer.state
    return [
        Partition(p.data, state[p], [Piece(names[p], 0, p.numel(), 0)], shared=True)
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def _zero3(optimizer: Any, names: dict[Tensor, str]) -> Iterator[Partition]:
    """Every parameter is cut into as many parts as there are ranks; the last one is filled up."""
    for values, group in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
        pieces, at = [], 0
        for p in group:
            size = p.partition_numel()
            start = min(size * optimizer._get_param_partition_rank(p), p.ds_numel)
            pieces.append(Piece(names[p], start, min(size, p.ds_numel - start), at))
            at += size
        yield Partition(values, optimizer.optimizer.state[values], pieces, shared=False)


def _zero12(optimizer: Any, names: dict[Tensor, str]) -> Iterator[Partition]:
    """All parameters of a group lie one after another, and are cut wherever a rank's part ends."""
    bfloat16 = hasattr(optimizer, "bf16_groups")  # DeepSpeed's own optimizer for stage 1 in bfloat16
    groups = optimizer.bf16_groups if bfloat16 else optimizer.bit16_groups
    flat = optimizer.fp32_groups_flat_partition if bfloat16 else optimizer.single_partition_of_fp32_groups
    for values, group in zip(flat, groups, strict=True):
        linked = [(names[p], p._hp_mapping) for p in group if p._hp_mapping is not None]
        pieces = [
            Piece(name, m.lp_fragment_address.start, m.lp_fragment_address.numel, m.hp_fragment_address.start)
            for name, m in linked
        ]
        yield Partition(values, optimizer.optimizer.state[values], pieces, shared=False)


def spread_weights(engine: Any) -> None:
    """Bring what the model computes with to what the optimizer now holds. A collective."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    if stage != 3:
        return
    optimizer.checkpoint_event_prologue()
    flat, parts = optimizer.fp16_partitioned_groups_flat, optimizer.fp16_partitioned_groups
    for values, computed, group in zip(optimizer.fp32_partitioned_groups_flat, flat, parts, strict=True):
        computed.data.copy_(values.data)
        for part, new in zip(group, optimizer.unflatten(computed, group), strict=True):
            part.data = new.data
    optimizer.checkpoint_event_epilogue()
