"""Prove, on the model that is about to be trained, that the loss by its head in blocks is that of all its logits."""

import numpy as np
import torch
from torch import nn

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.packed import PackedModel

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""Largest difference between the loss by scores and that by logits that is rounding, relative to the largest logit."""


def check_head(model: PackedModel, call: nn.Module, vocabulary: int) -> float:
    """Compare scores with the model's own logits. Every rank must call this.

    Returns the largest difference of a token's loss, relative to the largest logit or nat. Raises ModelError where it
    is more than rounding.
    """
    ids = (seeds.mix64(np.arange(17, dtype=np.uint64)) % np.uint64(vocabulary)).astype(np.int32)
    near = model.context.group
    pack = build_pack([SampleId(0, 0, 0)], [EncodedSample(ids, np.r_[0, np.ones(16)].astype(np.float32))], near.size)
    here = near.part(len(pack.tokens))
    count = max(0, min(here.stop, 16) - here.start)  # tokens that are predicted on this rank
    with torch.no_grad(), model.evaluating():
        scores, _ = model.token_scores(call, pack, None)
        logits = model.logits(call, pack, None, torch.arange(max(count, 1), device=model.device)).float()
    targets = torch.from_numpy(ids[here.start + 1 :][:count]).to(model.device, torch.int64)
    expected = nn.functional.cross_entropy(logits[:count], targets, reduction="none")
    found = (scores[:, 0] - scores[:, 1])[:count] - expected
    worst = nn.functional.pad(found.abs(), (0, 1)).max() / logits.abs().max().clamp(min=1)
    difference = float(near.gather(worst[None]).max())
    if not difference <= TOLERANCE.get(next(model.module.parameters()).dtype, 1e-5):
        raise ModelError(
            f"the loss by its head differs from that of its logits by {difference:.2g} of the largest one: it changes "
            "them in a way that is not known here",
            where=type(model.module).__name__,
            fix="choose another model, and report this one",
        )
    return difference
