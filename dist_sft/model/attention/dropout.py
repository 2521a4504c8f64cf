"""Dropout on attention weights (Vaswani et al., 2017, as BERT and GPT-2 place it: behind the softmax).

Whether a weight is dropped depends on (seed, step, sample, layer, head, query, key) alone, so it is the same in any
pack, on any rank, after a restart, and when activations are computed again.
"""

import torch
from torch import Tensor

from dist_sft.core import seeds
from dist_sft.model.attention.call import Call
from dist_sft.model.randomness import mix64


def drop(weights: Tensor, sample: int, call: Call, first_query: int, first_key: int) -> Tensor:
    """Attention weights [1, H, Q, K] with a share of `call.dropout` set to 0, and the others made larger by as much.

    sample: its key (`PackContext.sample_keys`). first_query, first_key: positions within the sample.
    """
    _, heads, queries, keys = weights.shape

    def count(first: int, number: int) -> Tensor:
        return torch.arange(first, first + number, device=weights.device, dtype=torch.int64)

    stream = mix64(torch.tensor(sample ^ _signed(seeds.key(0, f"attention:{call.layer}")), device=weights.device))
    streams = mix64(stream + count(call.first_head, heads))
    rows = mix64(streams[:, None] + count(first_query, queries))
    columns, threshold = count(first_key, keys), round(call.dropout * 2**64) - 2**63
    if weights.device.type == "cpu":  # a head at a time stays in the cache
        dropped = torch.stack([mix64(row[:, None] + columns) < threshold for row in rows])
    else:
        dropped = mix64(rows[:, :, None] + columns) < threshold
    return weights.masked_fill(dropped, 0) / (1 - call.dropout)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
