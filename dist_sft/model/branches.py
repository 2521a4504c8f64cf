"""What the blocks of a decoder read, and what they add to the residual stream."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dist_sft.core.errors import ModelError
from dist_sft.model.blocks import blocks_of

ENDS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2: a norm behind each sublayer
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
    ("self_attn", "mlp"),  # Llama, Qwen, Mistral, Gemma, Phi 3
    ("attn", "mlp"),  # GPT-2
)
"""Pairs of modules of a block whose outputs are added to the residual stream; the first that a block has."""


def decoder_blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The blocks of a causal language model, bottom first. Raises ModelError where they cannot be told."""
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    blocks = blocks_of(model)
    if len(blocks) != count:
        raise ModelError(
            f"its {count} blocks cannot be found: {len(blocks)} were",
            where=type(model).__name__,
            fix="leave out model.residual_dropout and model.neftune.layers, or choose another model",
        )
    return blocks


def branch_ends(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """The two modules, by name, whose outputs a block adds to the residual stream. Raises ModelError if unknown."""
    parts = dict(block.named_children())
    for names in ENDS:
        if all(name in parts for name in names):
            return [(name, parts[name]) for name in names]
    raise ModelError(
        f"what {type(block).__name__} adds to the residual stream cannot be told: it has {', '.join(parts)}",
        fix="leave out model.residual_dropout, or choose another model",
    )


def hidden_states(args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
    """What runs through the blocks, out of the arguments of one."""
    states = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(states, torch.Tensor):
        raise ModelError("a block is not called with its hidden states first", fix="choose another model")
    return states
