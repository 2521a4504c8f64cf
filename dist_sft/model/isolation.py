"""Prove, on the model that is about to be trained, that a token is predicted from its own sample's past alone."""

import numpy as np
import torch
from torch import Tensor, nn

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.packed import PackedModel

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of two logits that is rounding, relative to the largest logit."""

FIRST, SECOND = 13, 11
"""Tokens of the two samples of the probe."""


@torch.no_grad()
def check_isolation(model: PackedModel, call: nn.Module, vocabulary: int, context_length: int) -> float:
    """Look at a sample's logits alone, behind another sample, and with another last token. Every rank must call this.

    Returns the largest difference, relative to the largest logit. Raises ModelError where it is more than rounding, or
    where attention layers do not run through `model.attention`, with the window that config.json gives them.
    """
    ids = (seeds.mix64(np.arange(FIRST + SECOND + 1, dtype=np.uint64)) % np.uint64(vocabulary)).astype(np.int32)
    first, second = ids[:FIRST], ids[FIRST : FIRST + SECOND]
    other = np.r_[second[:-1], ids[-1] if ids[-1] != second[-1] else (ids[-1] + 1) % vocabulary].astype(np.int32)

    training = model.module.training
    model.module.eval()
    alone = _logits(model, call, second)
    windows = model.context.windows
    packed = _logits(model, call, first, second)[FIRST:]
    earlier = _logits(model, call, other)[:-1]
    model.module.train(training)

    name = type(model.module).__name__
    _check_layers(model, windows, context_length, name)
    if not bool(torch.isfinite(alone).all()):
        raise ModelError(
            "the model's logits are not finite before any training",
            where=name,
            fix="the weights are damaged, or model.dtype is too small for them: try float32",
        )
    _compare(alone[:-1], earlier, "a token sees those after it", name)
    return _compare(alone, packed, "samples of a pack see each other", name)


def _logits(model: PackedModel, call: nn.Module, *samples: np.ndarray) -> Tensor:
    """[T, V] of a pack."""
    encoded = [EncodedSample(tokens, np.zeros(len(tokens), np.float32)) for tokens in samples]
    pack = build_pack([SampleId(i, 0, i) for i in range(len(samples))], encoded)
    return model.logits(call, pack, None, torch.arange(len(pack.tokens), device=model.device))


def _check_layers(model: PackedModel, windows: list[int | None], context_length: int, name: str) -> None:
    text = model.module.config.get_text_config()  # type: ignore[operator, union-attr]
    if len(windows) < text.num_hidden_layers:
        raise ModelError(
            f"only {len(windows)} of {text.num_hidden_layers} layers use transformers' attention interface",
            where=name,
            fix="choose another model: its samples could not be kept apart",
        )
    window = getattr(text, "sliding_window", None)
    used = getattr(text, "use_sliding_window", True) and "sliding_attention" in (
        getattr(text, "layer_types", None) or ["sliding_attention"]
    )
    if window and used and window < context_length and not any(windows):
        raise ModelError(
            f"its attention window of {window} tokens does not reach the attention function",
            where=name,
            fix=f"lower data.context_length to {window}, or choose another model",
        )


def _compare(expected: Tensor, found: Tensor, what: str, name: str) -> float:
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-6))
    if difference > TOLERANCE.get(expected.dtype, 1e-4):
        raise ModelError(
            f"{what}: their logits change by {difference:.2g} of the largest one",
            where=name,
            fix="choose another model, and report this one",
        )
    return difference
