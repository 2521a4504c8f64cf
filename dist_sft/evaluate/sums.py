"""Losses, added up by the groups that samples are counted in.

Axes: P supervised tokens of a pack, G groups.
"""

import torch
from torch import Tensor

from dist_sft.data.pack import Pack


def add_by_group(sums: Tensor, losses: Tensor, samples: Tensor, pack: Pack) -> None:
    """Add the losses of a pack to the sums of the groups that its samples are in.

    Args:
        sums: float64[G], by id.
        losses: float32[P], weight x nats.
        samples: int64[P], the sample of the pack that each token belongs to, see `PackedModel.sample_of`.
    """
    if not pack.groups.size:  # a dummy pack, or samples that are counted in no group
        return
    of_tokens = torch.from_numpy(pack.groups).to(sums.device)[samples]  # int32[P, D]
    for ids in of_tokens.unbind(1):
        sums.index_add_(0, ids, losses.to(sums.dtype))
