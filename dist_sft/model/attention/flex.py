"""torch's flex attention (Dong et al., 2024) with a block mask of the pack.

Compiled on CUDA, where it skips the blocks between samples. On CPU, where it has no backward pass, all scores are
computed and the same mask and cap are applied to them: slow, and there to be tested.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dist_sft.model.attention.call import Call
from dist_sft.model.context import PackContext


def flex(query: Tensor, key: Tensor, value: Tensor, pack: PackContext, call: Call) -> Tensor:
    """See `Kernel`."""
    assert not call.dropout, "not chosen with dropout"
    mask, score = _mask(pack, call.window, query.device), None if call.softcap is None else _capped(call.softcap)
    query, key, value = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    if not query.is_cuda and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _dense(query, key, value, mask, score, call.scaling)[0].transpose(0, 1)
    attend = _compiled(flex_attention) if query.is_cuda else flex_attention
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        output: Any = attend(
            query,
            key,
            value,
            score_mod=score,
            block_mask=mask,
            scale=call.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return output[0].transpose(0, 1)


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, score: Any, scaling: float | None) -> Tensor:
    """[1, H, T, D], as flex_attention would."""
    groups, tokens = query.shape[1] // key.shape[1], query.shape[2]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    place = torch.arange(tokens, device=query.device)
    where = place[:0], place[:0], place[:, None], place[None]
    scores = scores if score is None else score(scores, *where)
    return torch.softmax(scores.masked_fill(~mask.mask_mod(*where), -torch.inf), dim=-1) @ value


def _mask(pack: PackContext, window: int | None, device: torch.device) -> BlockMask:
    """Built once for a pack and a window: all layers share it, and so do activations that are computed again."""
    name = f"flex:{window}"
    if name not in pack.kept:
        ends = pack.cu_seqlens.to(torch.int64)
        sample = torch.repeat_interleave(torch.arange(len(ends) - 1, device=device), ends.diff())

        def near(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = (sample[query] == sample[key]) & (key <= query)
            return seen if window is None else seen & (query - key < window)

        build = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
        pack.kept[name] = build(near, None, None, pack.ends[-1], pack.ends[-1], device=device)
    mask = pack.kept[name]
    assert isinstance(mask, BlockMask)
    return mask


def _capped(cap: float) -> Any:
    def score(value: Tensor, _: Tensor, __: Tensor, ___: Tensor, ____: Tensor) -> Tensor:
        return torch.tanh(value / cap) * cap

    return score


@cache
def _compiled(function: Any) -> Any:
    """For any number of tokens: packs differ in length, and after a few recompilations torch would give up."""
    return torch.compile(function, dynamic=True)
