"""Dropout that a sample carries with it, in place of a generator's."""

from typing import Any

import torch
from torch import Tensor, nn

from dist_sft.model.branches import branch_ends, decoder_blocks
from dist_sft.model.context import PackContext
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
