"""Dropout that a sample carries with it, in place of a generator's."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.branches import branch_ends, decoder_blocks, hidden_states
from dist_sft.model.context import PackContext
from dist_sft.model.packed import PackedModel
from dist_sft.model.randomness import draw


class SampleDropout(nn.Module):
    """Drops elements of [1, T, width] or [T, width], which ones is the sample's own; p in steps of 2**-16."""

    def __init__(self, p: float, name: str, pack: PackContext) -> None:
        super().__init__()
        self.p, self.name, self.context = p, name, pack
        self._dropped = min(round(p * 2**16), 2**16 - 1)
        """Of the 2**16 values of an int16, how many drop the element."""

    @torch.compiler.disable  # else a graph would be compiled for each block, whose rate and name are in it
    def forward(self, values: Tensor) -> Tensor:
        if self.context.keys is None or not self._dropped:
            return values
        below = self._dropped - 2**15
        mask = draw(self.context, f"dropout:{self.name}", values.shape[-1], torch.int16, lambda part: part < below)
        return values.masked_fill(mask, 0) * (2**16 / (2**16 - self._dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def replace_dropout(model: nn.Module, pack: PackContext) -> int:
    """Put `SampleDropout` where a model has nn.Dropout with p > 0; how many were replaced."""
    found = [(name, module.p) for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p]
    for name, p in found:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, SampleDropout(p, name, pack))
    return len(found)


def add_residual_dropout(model: nn.Module, pack: PackContext, p: float) -> None:
    """Dropout on what each block adds to the residual stream: 0 at the bottom, p at the last (LIMA, Zhou et al., 2023).

    The rate grows linearly with depth (section 4 of the paper). Raises ModelError where the places cannot be told.
    """
    blocks = decoder_blocks(model)
    for i, block in enumerate(blocks):
        for branch, (name, module) in enumerate(branch_ends(block)):
            rate = p * i / max(len(blocks) - 1, 1)
            _drop_output(module, branch, SampleDropout(rate, f"residual:{i}:{name}", pack))


def _drop_output(module: nn.Module, branch: int, dropout: SampleDropout) -> None:
    def dropped(values: Tensor) -> Tensor:
        probe = dropout.context.branches
        return torch.full_like(values, probe[branch]) if probe else dropout(values)

    def after(_: nn.Module, args: object, output: Any) -> Any:
        return (dropped(output[0]), *output[1:]) if isinstance(output, tuple) else dropped(output)

    module.register_forward_hook(after)


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
