"""A small copy of a model's architecture, with random weights: what its code does can be proved on any machine."""

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from dist_sft.model.configuration import auto_class
from dist_sft.model.meta import count_parameters, laid_out
from dist_sft.model.rounding import nudged
from dist_sft.model.sizes import head_size
from dist_sft.model.text_path import beside_text, is_composite

LARGEST = 200_000_000
"""Parameters up to which the copy keeps the width of the original."""
WIDTH = 64
FEWEST = 256
"""Tokens of the vocabulary of the smallest copies."""
WINDOW = 8
"""Tokens of a sliding window in a copy: fewer than its samples have."""


def miniature(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture with two blocks, or one of each kind that it has; narrower where it is still too large.

    Vocabulary, size of heads, caps and scales stay; a sliding window becomes one of WINDOW tokens, so that samples of a
    proof are longer than it.
    """
    small = _shortened(config)
    _fewer_layers_beside(small)
    if count_parameters(small) > LARGEST:
        _narrow(small)
    return small


def _shortened(config: PretrainedConfig) -> PretrainedConfig:
    """A copy with few blocks."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    shared = getattr(text, "num_kv_shared_layers", None) or 0  # the last ones look at keys of earlier ones
    own = text.num_hidden_layers - shared
    kinds = getattr(text, "layer_types", None) or ()
    kept = _kept_blocks(kinds[:own], own)
    if shared:
        last = [own + i for i in _kept_blocks(kinds[own:], shared)]
        kept, text.num_kv_shared_layers = [*kept, *last], len(last)
    for name, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == text.num_hidden_layers:
            setattr(text, name, type(value)(value[i] for i in kept))
    differing = {int(number): of for number, of in (text.to_dict().get("per_layer_config") or {}).items()}
    text.num_hidden_layers = len(kept)
    if differing:  # Gemma 4: sizes of heads by block
        text.per_layer_config = {new: differing[old] for new, old in enumerate(kept) if old in differing}
    if getattr(text, "max_window_layers", None) is not None:  # Qwen2: blocks below it have no window
        text.max_window_layers = min(text.max_window_layers, len(kept) - 1)
    if slides(text):
        text.sliding_window = WINDOW
    return small


def smallest(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Copies to be tried one after the other, the smallest first: a type that cannot be so small may be less so.

    Its kinds of blocks stay, and the size of its heads; then its vocabulary, too; then its width, where that is small.
    """
    for vocabulary, width in ((FEWEST, True), (None, True), (None, False)):
        try:
            small = _shortened(config)
            text = small.get_text_config()
            _fewer_layers_beside(small)
            if vocabulary is not None:
                _fewer_tokens(text, vocabulary)
            if width:
                _narrow_by_heads(text)
            small.validate()  # as saving it would
            beside = beside_text(small)
            sizes = [(p.numel(), name in beside) for name, p in laid_out(small).named_parameters()]
            if sum(n for n, aside in sizes if not aside) <= LARGEST // 2 and sum(n for n, _ in sizes) <= 2 * LARGEST:
                yield small
        except Exception:  # noqa: BLE001  # of somebody else's model: then the next one is tried
            continue


def _fewer_tokens(text: Any, count: int) -> None:
    for name, value in list(vars(text).items()):
        if name.startswith("vocab_size") and isinstance(value, int):  # Gemma 4 has a second one, for each layer
            setattr(text, name, min(value, count))
        if name.endswith("_token_id") and isinstance(value, int) and value >= count:
            setattr(text, name, 0)


def _narrow_by_heads(text: Any) -> None:
    """Four heads at most, of the size that they have; the model as wide as all of them."""
    heads, grouped = text.num_attention_heads, getattr(text, "num_key_value_heads", None)
    head = head_size(text)
    text.num_attention_heads = kept = min(heads, 4)
    if hasattr(text, "num_key_value_heads"):
        text.num_key_value_heads = kept if grouped in (None, heads) else 1 if grouped == 1 else max(1, kept // 2)
    with suppress(AttributeError):  # Falcon computes it
        if "head_dim" in vars(text) or hasattr(text, "head_dim"):
            text.head_dim = head
    text.hidden_size = kept * head
    _narrow_inside(text)


def _narrow_inside(text: Any) -> None:
    """The MLPs, which Gemma 3n makes of another width in each block."""
    inner = getattr(text, "intermediate_size", None)
    if inner:
        text.intermediate_size = [2 * WIDTH] * len(inner) if isinstance(inner, list | tuple) else 2 * WIDTH


def _fewer_layers_beside(config: Any) -> None:
    """In towers for images and sound."""
    text = config.get_text_config()
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig) and part is not text:
            for name in ("num_hidden_layers", "depth", "num_layers", "num_blocks"):
                if isinstance(getattr(part, name, None), int):
                    setattr(part, name, 1)


def slides(config: PretrainedConfig) -> bool:
    """Whether a model has blocks in which a token sees only so many before it."""
    text = config.get_text_config()
    return bool(getattr(text, "sliding_window", None)) and getattr(text, "use_sliding_window", True)


def _kept_blocks(kinds: Sequence[str], count: int) -> list[int]:
    """The first block of each kind; two where all are alike."""
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    return sorted(first) if len(first) > 1 else list(range(min(2, count)))


def _narrow(small: PretrainedConfig) -> None:
    """Fewer heads of the same size, and all other widths in proportion."""
    text: Any = small.get_text_config()
    head, told = head_size(text), "head_dim" in vars(text) or not is_composite(small)
    if told:
        text.head_dim = head
    grouped = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    groups = text.num_attention_heads // grouped
    text.num_key_value_heads = min(grouped, 2)
    text.num_attention_heads = min(text.num_attention_heads, text.num_key_value_heads * groups, 4)
    text.num_key_value_heads = min(text.num_key_value_heads, text.num_attention_heads)
    text.hidden_size = WIDTH if told else head * text.num_attention_heads  # Qwen2.5-VL divides it by its heads
    _narrow_inside(text)


def save_random(config: PretrainedConfig, folder: Path, seed: int) -> int:
    """Write a model with random weights in float32, as transformers would start to train it; its parameters."""
    torch.manual_seed(seed)
    model = auto_class(config).from_config(copy.deepcopy(config), dtype=torch.float32)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def save_nudged(folder: Path, out: Path) -> None:
    """The model of a folder, float32, with each weight off by one unit in the last place; and all that is beside it."""
    shutil.copytree(folder, out)
    for file in out.glob("*.safetensors"):
        weights = {name: nudged(weight) for name, weight in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
