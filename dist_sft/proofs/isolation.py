"""Prove, on the model that is about to be trained, that a token is predicted from its own sample's past alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.packed import PackedModel
from dist_sft.model.rounding import EXACT, allowed, difference, largest, nudged

FIRST, SECOND = 13, 11
"""Tokens of the two samples of the probe."""

ATTENTION_ALONE = (
    "choose a model whose layers mix tokens by attention alone: linear attention, state-space layers and convolutions "
    "carry a state from one sample of a pack to the next"
)


@dataclass(frozen=True, slots=True)
class Isolation:
    """Largest changes that were seen, relative to the largest value; and how far the model is from itself.

    packed     of a sample's logits: alone, and behind another
    poisoned   of its logits when the other sample's tokens change
    future     of its logits when its last token changes, before that one
    gradients  of the loss of each sample by the embeddings of the other, and of its own when the other's tokens change;
               None where they were not looked at
    rounding   of its logits for no reason but rounding: with tokens behind it, and with embeddings off by one unit in
               the last place; 0 in float64, where nobody asks for it
    """

    packed: float
    poisoned: float
    future: float
    gradients: float | None = None
    rounding: float = 0.0

    @property
    def largest(self) -> float:
        """Of all changes."""
        return largest(one for one in (self.packed, self.poisoned, self.future, self.gradients) if one is not None)


def check_isolation(model: PackedModel, call: nn.Module, vocabulary: int, context_length: int) -> Isolation:
    """Look at a sample's logits alone, behind another sample, behind a poisoned one, and with another last token.

    Only forward passes, so that it works on an engine of any ZeRO stage and leaves nothing behind. Every rank must call
    this. Raises ModelError where more changes than may, where attention layers do not run through `model.attention`
    with the window that config.json gives them, or where the model keeps a cache or gets a mask.
    """
    first, second, poison, other = _tokens(vocabulary)
    name = type(model.module).__name__
    mine = slice(FIRST, FIRST + SECOND)
    with torch.no_grad(), model.evaluating(), _watched(model.module, name):
        if _quantised(call):
            _logits(model, call, second)
        alone = _logits(model, call, second)
        windows = model.context.windows
        packed = _logits(model, call, first, second)[mine]
        poisoned = _logits(model, call, poison, second)[mine]
        earlier = _logits(model, call, other)
        own = _rounding(model, call, first, second, alone)
    _check_layers(model, windows, context_length, name)
    if not bool(torch.isfinite(alone).all()):
        raise ModelError(
            "the model's logits are not finite before any training",
            where=name,
            fix="the weights are damaged, or model.dtype is too small for them: try float32",
        )
    past, leak = slice(SECOND - 1), "samples of a pack see each other: their logits change"
    ahead = "a token sees those after it: its logits change"
    return Isolation(
        future=_bounded(alone[past] - earlier[past], alone, EXACT, ahead, name),
        poisoned=_bounded(packed - poisoned, packed, EXACT, leak, name),
        packed=_bounded(alone[:SECOND] - packed, alone, allowed(alone.dtype, own), leak, name),
        rounding=own,
    )


def _rounding(model: PackedModel, call: nn.Module, first: np.ndarray, second: np.ndarray, alone: Tensor) -> float:
    """How far the second sample's logits are from themselves for no reason but rounding, relative to the largest one.

    With other tokens behind it, which it cannot see: matrices are multiplied in other blocks. And with embeddings that
    are off by one unit in the last place, as the result of any layer may be.
    """
    if alone.dtype == torch.float64:
        return 0.0
    before = _logits(model, call, second, first)[:SECOND]
    embeddings = model.module.get_input_embeddings()  # type: ignore[operator]
    handle = embeddings.register_forward_hook(lambda _module, _args, output: nudged(output))
    try:
        off = _logits(model, call, second)[:SECOND]
    finally:
        handle.remove()
    return difference([torch.stack([before, off])], [torch.stack([alone[:SECOND]] * 2)])


def prove_isolation(model: PackedModel, vocabulary: int, context_length: int) -> Isolation:
    """`check_isolation`, and of gradients, too, on a model whose parameters are all here: no engine.

    The gradient of a sample's loss by the other's embeddings must be nothing, and that by its own must not move when
    the other's tokens change. No parameter gets a gradient. Raises ModelError.
    """
    found = check_isolation(model, model.module, vocabulary, context_length)
    first, second, poison, _ = _tokens(vocabulary)
    name, what = (
        type(model.module).__name__,
        "samples of a pack learn from each other: gradients of their losses change",
    )
    with model.evaluating():
        of_first, of_second = _gradients(model, first, second)
        _, again = _gradients(model, poison, second)
    if not bool(torch.isfinite(of_first).all() and torch.isfinite(of_second).all()):
        raise ModelError(
            "its gradients are not finite before any training",
            where=name,
            fix="the weights are damaged; or choose another model: its code divides by what may be 0",
        )
    changes = (
        _bounded(of_first[FIRST:], of_first, EXACT, what, name),
        _bounded(of_second[:FIRST], of_second, EXACT, what, name),
        _bounded(of_second[FIRST:] - again[FIRST:], of_second, EXACT, what, name),
    )
    return replace(found, gradients=max(changes))


def _tokens(vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The two samples; the first with all tokens changed; the second with its last token changed."""
    ids = (seeds.mix64(np.arange(FIRST + SECOND, dtype=np.uint64)) % np.uint64(vocabulary)).astype(np.int32)
    first, second = ids[:FIRST], ids[FIRST:]
    changed = (ids + 1 + vocabulary // 3) % vocabulary
    return first, second, changed[:FIRST], np.r_[second[:-1], changed[-1]].astype(np.int32)


def _quantised(call: nn.Module) -> bool:
    """Whether weights are rounded when ZeRO++ gathers them, in groups that are others in an engine's first pass.

    In it, an engine learns what it needs when, and gathers each layer alone; later several together.
    """
    asked = getattr(call, "zero_quantized_weights", None)
    return bool(asked and asked())


def _run(model: PackedModel, call: nn.Module, *samples: np.ndarray) -> Tensor:
    """[S, V]: logits of this rank's part of a pack, which may have padding at its end."""
    encoded = [EncodedSample(tokens, np.zeros(len(tokens), np.float32)) for tokens in samples]
    near = model.context.group
    pack = build_pack([SampleId(i, 0, i) for i in range(len(samples))], encoded, near.size)
    part = near.part(len(pack.tokens))
    return model.logits(call, pack, None, torch.arange(part.stop - part.start, device=model.device))


def _logits(model: PackedModel, call: nn.Module, *samples: np.ndarray) -> Tensor:
    """[T, V] of a pack, on every rank."""
    return model.context.group.gather(_run(model, call, *samples))


def _gradients(model: PackedModel, *samples: np.ndarray) -> tuple[Tensor, Tensor]:
    """[T, width] each: of the losses of two samples, by the embeddings of the pack."""
    embedded: list[Tensor] = []

    def cut(_: nn.Module, __: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # which a model may change in place (CTRL)

    handle = model.module.get_input_embeddings().register_forward_hook(cut)  # type: ignore[operator]
    try:
        logits = _run(model, model.module, *samples)
    finally:
        handle.remove()
    ends = torch.from_numpy(np.concatenate(samples)).to(model.device, torch.int64)
    nll = nn.functional.cross_entropy(logits[:-1], ends[1:], reduction="none")
    first, second = nll[: FIRST - 1].sum(), nll[FIRST:].sum()
    of_first = torch.autograd.grad(first, embedded[-1], retain_graph=True)[0][0]
    return of_first, torch.autograd.grad(second, embedded[-1])[0][0]


def _holds_something(mask: object) -> bool:
    """Models with several kinds of layers hand a dictionary of masks around, each of which may be none."""
    if isinstance(mask, dict):
        return any(map(_holds_something, mask.values()))
    return mask is not None


@contextmanager
def _watched(module: nn.Module, name: str) -> Iterator[None]:
    """Raise ModelError where any module inside is given a mask or a cache."""

    def look(inner: nn.Module, _: object, given: dict[str, Any]) -> None:
        for key in ("past_key_values", "cache_params"):
            if given.get(key) is not None or given.get("use_cache"):
                raise ModelError(
                    f"it keeps a cache of what it has seen (in {type(inner).__name__}), through which samples can see "
                    "each other",
                    where=name,
                    fix="call the model with use_cache=False, and set use_cache to false in its config.json",
                )
        if _holds_something(given.get("attention_mask")):
            raise ModelError(
                f"somebody gives it an attention mask (in {type(inner).__name__}), which would be ignored",
                where=name,
                fix="call the model without attention_mask: the pack keeps samples apart",
            )

    handles = [inner.register_forward_pre_hook(look, with_kwargs=True) for inner in module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_layers(model: PackedModel, windows: list[int | None], context_length: int, name: str) -> None:
    text: PretrainedConfig = model.module.config.get_text_config()  # type: ignore[operator, union-attr]
    if len(windows) < text.num_hidden_layers:
        raise ModelError(
            f"only {len(windows)} of {text.num_hidden_layers} layers use transformers' attention interface: "
            "in the others the samples of a pack could not be kept apart",
            where=name,
            fix=ATTENTION_ALONE,
        )
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    sliding = text.num_hidden_layers if getattr(text, "use_sliding_window", True) else 0
    sliding = kinds.count("sliding_attention") if kinds else sliding
    if window and window < context_length and len([w for w in windows if w is not None]) < sliding:
        raise ModelError(
            f"its attention window of {window} tokens does not reach the attention function",
            where=name,
            fix=f"lower data.context_length to {window}, or choose another model",
        )


def _bounded(change: Tensor, of: Tensor, limit: float, what: str, name: str) -> float:
    """The largest change, relative to the largest value of `of`."""
    size = float(change.abs().max() / of.abs().max().clamp(min=1e-6))
    if not size <= limit:
        raise ModelError(f"{what} by {size:.2g} of the largest one", where=name, fix=ATTENTION_ALONE)
    return size
