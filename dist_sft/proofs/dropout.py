"""Prove that residual dropout acts on all that a block adds to the residual stream, and where it is added."""

from typing import Any

import numpy as np
import torch
from torch import nn

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.branches import decoder_blocks, hidden_states
from dist_sft.model.packed import PackedModel

PROBES = ((0.0, 0.0), (1024.0, 0.0), (2048.0, 0.0), (0.0, 1024.0), (0.0, 2048.0))
"""Powers of two: their sums over many blocks are exact in bfloat16."""


@torch.no_grad()
def check_residual_dropout(model: PackedModel, call: nn.Module) -> None:
    """Prove that residual dropout acts on all that blocks add to the residual stream, at the place where it is added.

    With 0 for both sublayers a block must be the identity: no other branch is left. With twice as much for one of them,
    it must add twice as much: no norm follows. Every rank must call this. Raises ModelError.
    """
    name = type(decoder_blocks(model.module)[0]).__name__
    with model.evaluating():
        probes = [_added(model, call, branches) for branches in PROBES]
    wrong = [n != 0 or not (_twice(a, aa) and _twice(m, mm)) for n, a, aa, m, mm in zip(*probes, strict=True)]
    if any(wrong):
        raise ModelError(
            f"{sum(wrong)} of {len(wrong)} blocks add to the residual stream what dropout does not reach",
            where=name,
            fix="leave out model.residual_dropout, or choose another model",
        )


def _twice(once: float, twice: float) -> bool:
    """Up to rounding in bfloat16; behind a norm it would be as much as once."""
    return once > 0 and 1.5 < twice / once < 2.5


def _added(model: PackedModel, call: nn.Module, branches: tuple[float, float]) -> list[float]:
    """The norm of what each block adds to the residual stream, with `branches` for what its sublayers compute."""
    norms: list[float] = []

    def record(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        norms.append(float((out.float() - hidden_states(args, kwargs).float()).norm()))

    handles = [block.register_forward_hook(record, with_kwargs=True) for block in decoder_blocks(model.module)]
    sample = EncodedSample(np.zeros(8, np.int32), np.zeros(8, np.float32))
    model.context.branches = branches
    try:
        at = torch.zeros(1, dtype=torch.int64, device=model.device)
        model.logits(call, build_pack([SampleId(0, 0, 0)], [sample]), None, at)
    finally:
        model.context.branches = None
        for handle in handles:
            handle.remove()
    return norms
