"""One attention per sample, on any device.

torch's fused kernel wherever it can be used. A window is a band: blocks of queries against the blocks of keys that
they can see, so that a long sample costs its length times the window. Soft caps and dropout go block by block, too.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from dist_sft.model.attention.call import Call
from dist_sft.model.attention.dropout import drop
from dist_sft.model.context import PackContext
from dist_sft.model.precision import matmul_dtype

BLOCK = 128
"""Queries of a block. Measured on CPU with windows of 64 to 1024 tokens: 64 to 256 are equally fast, 512 is slower."""


def segments(query: Tensor, key: Tensor, value: Tensor, pack: PackContext, call: Call) -> Tensor:
    """See `Kernel`. Without bfloat16 arithmetic torch's backward kernel is 8 times as slow in it as in float32."""
    kind, lengths = query.dtype, [end - begin for begin, end in pairwise(pack.ends)]
    fast = matmul_dtype(query.device, kind)
    parts = [tensor.to(fast).transpose(0, 1)[None].split(lengths, dim=2) for tensor in (query, key, value)]
    done = [
        _sample(q, k, v, call, pack.sample_keys[i] if call.dropout else 0)
        for i, (q, k, v) in enumerate(zip(*parts, strict=True))
    ]
    return torch.cat([part[0].transpose(0, 1) for part in done]).to(kind)


def _sample(query: Tensor, key: Tensor, value: Tensor, call: Call, sample: int) -> Tensor:
    """query [1, H, L, D], key and value [1, G, L, D] -> [1, H, L, D]. sample: its key for dropout."""
    window = call.window if call.window is not None and call.window < query.shape[2] else None
    if window is None and call.softcap is None and not call.dropout:
        return _fused(query, key, value, call, None)
    done = []
    for q, k, v, first, begin in _blocks(query, key, value, window):
        ahead = torch.arange(first, first + q.shape[2], device=q.device)[:, None]
        ahead = ahead - torch.arange(begin, begin + k.shape[2], device=q.device)
        near = ahead >= 0 if window is None else (ahead >= 0) & (ahead < window)
        if call.softcap is None and not call.dropout:
            done.append(_fused(q, k, v, call, near))
        else:
            done.append(_by_hand(q, k, v, call, near, sample, first, begin))
    return torch.cat(done, dim=2)


def _blocks(
    query: Tensor, key: Tensor, value: Tensor, window: int | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, int, int]]:
    """Blocks of queries, the keys and values that they can see, and the positions of the first query and key.

    Blocks are split off and joined again, never sliced: the gradient of a slice is as large as the whole.
    """
    before = query.shape[2] if window is None else -(-(window - 1) // BLOCK)  # blocks of keys before a query's own
    queries, keys, values = (tensor.split(BLOCK, dim=2) for tensor in (query, key, value))
    for i, block in enumerate(queries):
        begin = max(0, i - before)
        seen, theirs = torch.cat(keys[begin : i + 1], dim=2), torch.cat(values[begin : i + 1], dim=2)
        yield block, seen, theirs, i * BLOCK, begin * BLOCK


def _fused(query: Tensor, key: Tensor, value: Tensor, call: Call, near: Tensor | None) -> Tensor:
    """near: bool[Q, K]; None: causal."""
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=near,
        is_causal=near is None,
        scale=call.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _by_hand(
    query: Tensor, key: Tensor, value: Tensor, call: Call, near: Tensor, sample: int, first: int, begin: int
) -> Tensor:
    """What the fused kernel cannot: a soft cap (Gemma 2, 2024, section 2), and dropout that follows a sample."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (call.scaling if call.scaling is not None else query.shape[-1] ** -0.5)
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    exact = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores.masked_fill(~near, -torch.inf), dim=-1, dtype=exact)
    if call.dropout:
        weights = drop(weights, sample, call, first, begin)
    return weights.to(query.dtype) @ value
