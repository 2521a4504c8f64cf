"""The law of the noise: on each sample of a pack its norm is alpha / sqrt(3), whatever else is in the pack."""

from collections.abc import Sequence

import numpy as np
import torch

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.noise import Neftune
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.context import PackContext
from dist_sft.model.neftune import noise
from dist_sft.model.rounding import largest
from dist_sft.proofs.proof import Proof

SAMPLES, TOKENS, ALPHA = 4, 2048, 5.0
"""Samples in the pack, the most tokens that are taken of one, and the strength."""


def prove_noise(settings: Neftune, samples: Sequence[EncodedSample], width: int, seed: int) -> list[Proof]:
    """Of the settings' distribution, on the shortest and longest of some samples in one pack, and a sample alone.

    The limit is six standard deviations of the norm of as many independent numbers as the smallest sample has.
    """
    if settings.scale == "row":
        why = "scale is row: the noise depends on the pack, on purpose"
        return [Proof("noise of a sample: its own norm, in any pack", None, detail=why)]
    ordered = sorted((EncodedSample(one.tokens[:TOKENS], one.weights[:TOKENS]) for one in samples), key=len)
    parts = [*ordered[: SAMPLES // 2], *ordered[-SAMPLES // 2 :]] if len(ordered) > SAMPLES else ordered
    whole = _drawn(settings, parts, range(len(parts)), width, seed).split([len(part) for part in parts])
    alone = _drawn(settings, parts[-1:], [len(parts) - 1], width, seed)
    off: list[float] = []
    fewest = len(parts[0]) * width
    for part, drawn in zip(parts, whole, strict=True):
        learned = float(np.mean(part.weights > 0))
        share = {"all": 1.0, "answer": learned, "prompt": 1 - learned}[settings.where]
        if share:
            off.append(abs(float(drawn.norm()) / (ALPHA * (share / 3) ** 0.5) - 1))
            fewest = min(fewest, round(share * len(part)) * width)
    detail = f"{len(parts)} samples of {len(parts[0])} to {len(parts[-1])} tokens in one pack, {settings.distribution}"
    return [
        Proof.measured("noise of a sample: norm alpha / sqrt(3)", largest(off), 6 * (0.5 / fewest) ** 0.5, detail),
        Proof.measured("noise of a sample: same bits alone", float((whole[-1] - alone).abs().max()), 0.0, detail),
    ]


def _drawn(
    settings: Neftune, parts: Sequence[EncodedSample], positions: Sequence[int], width: int, seed: int
) -> torch.Tensor:
    """float32[T, width]: the noise on a pack in the first step."""
    context = PackContext()
    pack = build_pack([SampleId(position, 0, position) for position in positions], parts)
    context.enter(pack, torch.device("cpu"), seed, step=0)
    return noise(context, settings, ALPHA, width)
