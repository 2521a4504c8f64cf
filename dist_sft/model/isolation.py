"""Prove, on the model that is about to be trained, that no sample of a pack sees another."""

import numpy as np
import torch
from torch import nn

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.packed import PackedModel

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of two logits that is rounding, relative to the largest logit."""


@torch.no_grad()
def check_isolation(model: PackedModel, call: nn.Module, vocabulary: int) -> float:
    """Compare a sample's logits alone with those it has behind another sample. Every rank must call this.

    Returns the largest difference, relative to the largest logit. Raises ModelError where it is more than rounding.
    """
    ids = seeds.mix64(np.arange(24, dtype=np.uint64)) % np.uint64(vocabulary)
    first, second = (
        EncodedSample(part.astype(np.int32), np.r_[0, np.ones(len(part) - 1)].astype(np.float32))
        for part in (ids[:13], ids[13:])
    )
    places = [SampleId(0, 0, 0), SampleId(1, 0, 1)]
    length = len(second)
    training = model.module.training
    model.module.eval()
    alone = model.logits(call, build_pack(places[1:], [second]), None, _range(0, length, model.device))
    packed = model.logits(
        call, build_pack(places, [first, second]), None, _range(len(first), len(first) + length, model.device)
    )
    model.module.train(training)
    if not bool(torch.isfinite(alone).all()):
        raise ModelError(
            "the model's logits are not finite before any training",
            where=type(model.module).__name__,
            fix="the weights are damaged, or model.dtype is too small for them: try float32",
        )
    difference = float((alone - packed).abs().max() / alone.abs().max().clamp(min=1e-6))
    if difference > TOLERANCE.get(alone.dtype, 1e-4):
        raise ModelError(
            f"samples of a pack see each other: their logits change by {difference:.2g} of the largest one",
            where=type(model.module).__name__,
            fix="set train.packing=false, and report the model: its layers do not keep samples apart",
        )
    return difference


def _range(start: int, end: int, device: torch.device) -> torch.Tensor:
    return torch.arange(start, end, device=device)
