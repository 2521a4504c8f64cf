"""A small copy of a model's architecture, with random weights: what its code does can be proved on any machine."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from dist_sft.model.capacity import count_parameters

LARGEST = 200_000_000
"""Parameters up to which the copy keeps the width of the original."""
WIDTH = 64
WINDOW = 8
"""Tokens of a sliding window in a copy: fewer than its samples have."""


def miniature(config: PretrainedConfig) -> PretrainedConfig:
    """The same architecture with two blocks, or one of each kind that it has; narrower where it is still too large.

    Vocabulary, size of heads, caps and scales stay; a sliding window becomes one of WINDOW tokens, so that samples of a
    proof are longer than it.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    kept = _kept_blocks(getattr(text, "layer_types", None) or (), text.num_hidden_layers)
    for name, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == text.num_hidden_layers:
            setattr(text, name, type(value)(value[i] for i in kept))
    text.num_hidden_layers = len(kept)
    if getattr(text, "max_window_layers", None) is not None:  # Qwen2: blocks below it have no window
        text.max_window_layers = min(text.max_window_layers, len(kept) - 1)
    if slides(text):
        text.sliding_window = WINDOW
    if count_parameters(small) > LARGEST:
        _narrow(text)
    return small


def slides(config: PretrainedConfig) -> bool:
    """Whether a model has blocks in which a token sees only so many before it."""
    text = config.get_text_config()
    return bool(getattr(text, "sliding_window", None)) and getattr(text, "use_sliding_window", True)


def _kept_blocks(kinds: Sequence[str], count: int) -> list[int]:
    """The first block of each kind; two where all are alike."""
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    return sorted(first) if len(first) > 1 else list(range(min(2, count)))


def _narrow(text: Any) -> None:
    """Fewer heads of the same size, and all other widths in proportion."""
    if not getattr(text, "head_dim", None):
        text.head_dim = text.hidden_size // text.num_attention_heads
    grouped = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    groups = text.num_attention_heads // grouped
    text.num_key_value_heads = min(grouped, 2)
    text.num_attention_heads = min(text.num_attention_heads, text.num_key_value_heads * groups, 4)
    text.num_key_value_heads = min(text.num_key_value_heads, text.num_attention_heads)
    text.hidden_size, text.intermediate_size = WIDTH, 2 * WIDTH


def save_random(config: PretrainedConfig, folder: Path, seed: int) -> int:
    """Write a model with random weights in float32, as transformers would start to train it; its parameters."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())
