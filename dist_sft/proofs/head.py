"""Prove, on the model that is about to be trained, that the loss by its head in blocks is that of all its logits."""

import numpy as np
import torch
from torch import Tensor, nn

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.packed import PackedModel
from dist_sft.model.rounding import allowed


def check_head(model: PackedModel, call: nn.Module, vocabulary: int) -> float:
    """Compare scores with the model's own logits. Every rank must call this.

    Returns the largest difference of a token's loss, relative to the largest logit or nat. Raises ModelError where it
    is more than rounding: than some times what the head rounds if it is asked for one token at a time.
    """
    ids = (seeds.mix64(np.arange(17, dtype=np.uint64)) % np.uint64(vocabulary)).astype(np.int32)
    near = model.context.group
    pack = build_pack([SampleId(0, 0, 0)], [EncodedSample(ids, np.r_[0, np.ones(16)].astype(np.float32))], near.size)
    here = near.part(len(pack.tokens))
    count = max(0, min(here.stop, 16) - here.start)  # tokens that are predicted on this rank
    with torch.no_grad(), model.evaluating():
        scores, _ = model.token_scores(call, pack, None)
        logits = model.logits(call, pack, None, torch.arange(max(count, 1), device=model.device))
        last = model.logits(call, pack, None, torch.tensor([max(count, 1) - 1], device=model.device))
    targets = torch.from_numpy(ids[here.start + 1 :][:count]).to(model.device, torch.int64)
    dtype, moved = logits.dtype, (logits[-1:] - last).abs().max()
    expected = nn.functional.cross_entropy(_wide(logits[:count]), targets, reduction="none")
    found = (scores[:, 0] - scores[:, 1])[:count] - expected
    worst = torch.stack([nn.functional.pad(found.abs(), (0, 1)).max(), moved]) / logits.abs().max().clamp(min=1)
    difference, own = (float(figure) for figure in near.gather(worst[None]).amax(0))
    if not difference <= allowed(dtype, own):
        raise ModelError(
            f"the loss by its head differs from that of its logits by {difference:.2g} of the largest one: it changes "
            "them in a way that is not known here",
            where=type(model.module).__name__,
            fix="choose another model, and report this one",
        )
    return difference


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
