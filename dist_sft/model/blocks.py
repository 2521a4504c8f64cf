"""Where the blocks of a decoder are, and what each of them adds to the residual stream.

embeddings -> block 0 -> ... -> block N-1 -> norm, head
"""

import torch
from torch import Tensor, nn

from dist_sft.core.errors import ModelError

ENDS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 and 3, OLMo 2: a norm behind each sublayer
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
    ("self_attn", "mlp"),  # Llama, Qwen, Mistral, Gemma, Phi 3
    ("attn", "mlp"),  # GPT-2
)
"""Pairs of modules of a block whose outputs are added to the residual stream; the first that a block has."""


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a causal language model, bottom first. Raises ModelError where they cannot be told."""
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    outermost = min((name.count(".") for name, _ in lists), default=0)
    found = [blocks for name, blocks in lists if name.count(".") == outermost]
    if len(found) != 1:
        raise ModelError(
            f"its {count} blocks cannot be found: {len(found)} lists of modules have this length",
            where=type(model).__name__,
            fix="leave out model.residual_dropout and model.neftune.layers, or choose another model",
        )
    return list(found[0])


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
