"""What a loss must know of the logits, without ever holding them all.

hidden [P, H] of the supervised positions ─ blocks of the vocabulary ─> scores [P, 3]

The logits of P positions are the largest tensor of a training step. They are computed in blocks of the vocabulary,
reduced at once, and computed again in the backward pass. Walking along the vocabulary, rather than along positions,
writes each part of the weight's gradient once: no second buffer of its size, no sum of rounded parts.

Axes: P supervised positions, H width, V vocabulary, B words of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist_sft.model.precision import matmul_dtype

BLOCK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits of a block: enough to keep the cores busy, and little beside what else a step holds."""
KEPT = 1 << 25
"""Logits that are kept for the backward pass rather than computed again, if all of a pack are no more: 128 MiB."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model does to its logits after the head: scale * logits, or cap * tanh(scale * logits / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        scaled = logits if self.scale == 1 else logits * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def backward_(self, gradient: Tensor, shaped: Tensor) -> Tensor:
        """The gradient of the logits from that of the shaped ones, in place."""
        if self.cap is not None:
            gradient.mul_(1 - (shaped / self.cap).square_())
        return gradient if self.scale == 1 else gradient.mul_(self.scale)


def token_scores(
    factors: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None, targets: Tensor, shape: Shape, mean: bool = False
) -> Tensor:
    """What a loss needs of the logits: those of sum over k of hidden_k @ weight_k.T + bias, shaped.

    Args:
        factors: hidden [P, H_k] and weight [V, H_k]; more than one where an adapter sits on the head.
        bias: [V], or None.
        targets: int64[P].
        mean: whether the third column is wanted; else it is 0.
    Returns:
        float32[P, 3]: log of the sum of exp(logits); the target's logit; the mean logit. Differentiable once.
    """
    hidden, weights = zip(*factors, strict=True)
    vocabulary = len(weights[0])
    width = max(128, BLOCK.get(targets.device.type, BLOCK["cuda"]) // len(targets))
    blocks = [slice(at, min(at + width, vocabulary)) for at in range(0, vocabulary, width)]
    walk = _Walk(shape, mean, blocks, len(factors))
    scores: Tensor = _Scores.apply(walk, targets, bias, *hidden, *weights)
    return scores


@dataclass(frozen=True, slots=True)
class _Walk:
    """Through the vocabulary, block by block."""

    shape: Shape
    mean: bool
    blocks: list[slice]
    factors: int

    def logits(self, hidden: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None, block: slice) -> Tensor:
        """float32[P, B], shaped. hidden: in the numbers that matrices are multiplied in."""
        parts = [_matmul(h, weight[block].to(h.dtype).t()) for h, weight in zip(hidden, weights, strict=True)]
        logits = parts[0]
        for part in parts[1:]:
            logits += part
        if bias is not None:
            logits += bias[block]
        return self.shape(logits)


class _Scores(torch.autograd.Function):
    """Two walks through the vocabulary: forward reduces the logits, backward spreads the gradients of the sums."""

    @staticmethod
    def forward(ctx: Any, walk: _Walk, targets: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        given, weights = tensors[: walk.factors], tensors[walk.factors :]
        hidden = [h.to(matmul_dtype(h.device, h.dtype)) for h in given]
        partition = targets.new_full(targets.shape, -torch.inf, dtype=torch.float32)
        target, total = torch.zeros_like(partition), torch.zeros_like(partition)
        keep = any(ctx.needs_input_grad) and len(targets) * len(weights[0]) <= KEPT
        ctx.kept = []
        for block in walk.blocks:
            logits = walk.logits(hidden, weights, bias, block)
            partition = torch.logaddexp(partition, logits.logsumexp(1))
            inside, at = _inside(targets, block)
            target = torch.where(inside, logits.gather(1, at[:, None])[:, 0], target)
            if walk.mean:
                total += logits.sum(1)
            if keep:
                ctx.kept.append(logits)
        ctx.walk = walk
        ctx.save_for_backward(targets, bias, partition, *given, *weights)
        return torch.stack([partition, target, total / len(weights[0])], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        walk: _Walk = ctx.walk
        targets, bias, partition, *tensors = ctx.saved_tensors
        given, weights = tensors[: walk.factors], tensors[walk.factors :]
        hidden = [h.to(matmul_dtype(h.device, h.dtype)) for h in given]
        of_partition, of_target, of_mean = gradient.unbind(1)
        _, _, bias_wanted, *wanted = ctx.needs_input_grad
        of_bias = torch.empty_like(bias) if bias_wanted else None
        of_hidden = [torch.zeros_like(h, dtype=torch.float32) for h in given]
        of_weights = [
            torch.empty_like(weight) if want else None
            for weight, want in zip(weights, wanted[walk.factors :], strict=True)
        ]
        for number, block in enumerate(walk.blocks):
            logits = ctx.kept[number] if ctx.kept else walk.logits(hidden, weights, bias, block)
            part = logits if walk.shape.cap is None else logits.clone()  # whose slope needs the logits themselves
            part.sub_(partition[:, None]).exp_().mul_(of_partition[:, None])
            inside, at = _inside(targets, block)
            part.scatter_add_(1, at[:, None], (of_target * inside)[:, None])
            if walk.mean:
                part += (of_mean / len(weights[0]))[:, None]
            walk.shape.backward_(part, logits)
            if of_bias is not None:
                of_bias[block] = part.sum(0)
            for k, h in enumerate(hidden):
                part = part.to(h.dtype)
                if wanted[k]:
                    of_hidden[k] += _matmul(part, weights[k][block].to(h.dtype))
                if (of_weight := of_weights[k]) is not None:
                    of_weight[block] = _matmul(part.t(), h)
        ctx.kept = []
        return (None, None, of_bias, *(of.to(h.dtype) for of, h in zip(of_hidden, given, strict=True)), *of_weights)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """float32: where the device can, not rounded in between."""
    if a.dtype != torch.float32 and a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).float()


def _inside(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """bool[P], int64[P]: whether a target is in the block, and where; 0 if it is not."""
    inside = (targets >= block.start) & (targets < block.stop)
    return inside, torch.where(inside, targets - block.start, 0)
