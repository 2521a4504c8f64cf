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
from dist_sft.model.sizes import BLOCK, KEPT

ALIGNED = 64
"""Words of a block are a multiple of this: matrices are multiplied a tenth faster then."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
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
    factors: Sequence[tuple[Tensor, Tensor]],
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform,
    mean: bool = False,
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
    width = max(2 * ALIGNED, BLOCK.get(targets.device.type, BLOCK["cuda"]) // len(targets) // ALIGNED * ALIGNED)
    blocks = [slice(at, min(at + width, vocabulary)) for at in range(0, vocabulary, width)]
    walk = _Walk(transform, mean, blocks, len(factors), _wide(hidden[0].dtype))
    scores: Tensor = _Scores.apply(walk, targets, bias, *hidden, *weights)
    return scores


@dataclass(frozen=True, slots=True)
class _Walk:
    """Through the vocabulary, block by block. wide: what logits, sums and gradients of hidden are held in."""

    transform: LogitTransform
    mean: bool
    blocks: list[slice]
    factors: int
    wide: torch.dtype

    def logits(
        self, hidden: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None, block: slice, room: Tensor
    ) -> Tensor:
        """float32[P, B], shaped, in the room given. hidden: in the numbers that matrices are multiplied in."""
        parts = zip(hidden, (weight[block].to(hidden[0].dtype).t() for weight in weights), strict=True)
        logits = _matmul(*next(parts), out=room)
        for part in parts:
            logits += _matmul(*part)
        if bias is not None:
            logits += bias[block]
        return logits if self.transform == LogitTransform() else logits.copy_(self.transform(logits))

    def rooms(self, targets: Tensor, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Where what is known of each block stays for the backward pass, float32[P, B]; None: it is computed again.

        The gradient of a weight, which is written last, lends its memory to the logits of the last words. Backwards
        from the last block, a word's gradient is written where only logits lie that have been used: with n of V words
        kept, P numbers each, word v's gradient begins at v H, and the logits of the words before it end at
        (v - (V - n)) P. That is no more than v H for every v <= V as soon as n P <= V H, which says that they fit.
        """
        count, vocabulary = len(targets), self.blocks[-1].stop
        lent = [_lent(gradient, self.wide) for gradient in gradients if gradient is not None]
        room, own = max(lent, key=len, default=None), min(KEPT, count * vocabulary)
        if room is None or len(room) < own:
            room = torch.empty(own, dtype=self.wide, device=targets.device)
        fitting = [block.start for block in self.blocks if (vocabulary - block.start) * count <= len(room)]
        first = min(fitting, default=vocabulary)
        shifted = [slice(block.start - first, block.stop - first) for block in self.blocks]
        return [_place(room, block, count) if block.start >= 0 else None for block in shifted]

    @property
    def exponentials(self) -> bool:
        """Whether exp(logits - the block's most) are kept in place of the logits, which only a cap asks for again."""
        return self.transform.cap is None

    def spare(self, targets: Tensor) -> list[Tensor]:
        """Memory for one block's numbers after another's, float32[P, B] for each."""
        room = torch.empty(self.blocks[0].stop * len(targets), dtype=self.wide, device=targets.device)
        return [_place(room, slice(0, block.stop - block.start), len(targets)) for block in self.blocks]


class _Scores(torch.autograd.Function):
    """Two walks through the vocabulary: forward reduces the logits, backward spreads the gradients of the sums."""

    @staticmethod
    def forward(ctx: Any, walk: _Walk, targets: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
        given, weights = tensors[: walk.factors], tensors[walk.factors :]
        hidden = [h.to(matmul_dtype(h.device, h.dtype)) for h in given]
        partition = targets.new_full(targets.shape, -torch.inf, dtype=walk.wide)
        target, total = torch.zeros_like(partition), torch.zeros_like(partition)
        ctx.of_weights = _like(weights, ctx.needs_input_grad[-walk.factors :])
        ctx.kept = walk.rooms(targets, ctx.of_weights) if any(ctx.needs_input_grad) else [None] * len(walk.blocks)
        ctx.most = [partition] * len(walk.blocks)
        for i, (block, kept, spare) in enumerate(zip(walk.blocks, ctx.kept, walk.spare(targets), strict=True)):
            logits = walk.logits(hidden, weights, bias, block, spare if kept is None else kept)
            ctx.most[i] = most = logits.amax(1)
            inside, at = _inside(targets, block)
            target = torch.where(inside, logits.gather(1, at[:, None])[:, 0], target)
            if walk.mean:
                total += logits.sum(1)
            room = kept if kept is not None and walk.exponentials else spare
            exponentials = torch.sub(logits, most[:, None], out=room).exp_()
            partition = torch.logaddexp(partition, most + exponentials.sum(1).log_())
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
        of_hidden = [torch.zeros_like(h, dtype=walk.wide) for h in given]
        of_weights = ctx.of_weights or _like(weights, wanted[walk.factors :])
        walked = list(zip(walk.blocks, ctx.kept, ctx.most, walk.spare(targets), walk.spare(targets), strict=True))
        ctx.of_weights, ctx.kept = None, [None] * len(walk.blocks)  # given away, and used up
        for block, kept, most, again, part in reversed(walked):
            known = walk.logits(hidden, weights, bias, block, again) if kept is None else kept
            if kept is not None and walk.exponentials:
                torch.mul(known, (torch.exp(most - partition) * of_partition)[:, None], out=part)
            else:
                torch.sub(known, partition[:, None], out=part).exp_().mul_(of_partition[:, None])
            inside, at = _inside(targets, block)
            part.scatter_add_(1, at[:, None], (of_target * inside)[:, None])
            if walk.mean:
                part += (of_mean / len(weights[0]))[:, None]
            walk.transform.backward_(part, known)
            if of_bias is not None:
                of_bias[block] = part.sum(0)
            for k, h in enumerate(hidden):
                rounded = part.to(h.dtype)
                if wanted[k]:
                    of_hidden[k] += _matmul(rounded, weights[k][block].to(h.dtype))
                if (of_weight := of_weights[k]) is not None:
                    _matmul(rounded.t(), h, out=of_weight[block])
        return (None, None, of_bias, *(of.to(h.dtype) for of, h in zip(of_hidden, given, strict=True)), *of_weights)


def _like(weights: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    return [
        torch.empty_like(weight, memory_format=torch.contiguous_format) if want else None
        for weight, want in zip(weights, wanted, strict=True)
    ]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What logits are held in: float32; float64 where the model is in float64, as proofs compute it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _lent(tensor: Tensor, wide: torch.dtype) -> Tensor:
    """The memory of a contiguous tensor, as wide[N]."""
    numbers = tensor.view(-1)
    return numbers[: tensor.nbytes // wide.itemsize * wide.itemsize // tensor.itemsize].view(wide)


def _place(room: Tensor, words: slice, count: int) -> Tensor:
    """float32[P, B] in a room that holds the numbers of one word after another's."""
    return room[words.start * count : words.stop * count].view(count, -1)


def _matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """float32 or float64, where the device can not rounded in between; or in the place and dtype of `out`."""
    if a.dtype != torch.float32 and a.device.type == "cuda":
        direct = out is not None and out.dtype == torch.float32
        product = torch.mm(a, b, out_dtype=torch.float32, out=out if direct else None)
        return product if direct or out is None else out.copy_(product)
    if out is not None and a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    product = torch.mm(a, b).to(_wide(a.dtype))
    return product if out is None else out.copy_(product)


def _inside(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """bool[P], int64[P]: whether a target is in the block, and where; 0 if it is not."""
    inside = (targets >= block.start) & (targets < block.stop)
    return inside, torch.where(inside, targets - block.start, 0)
