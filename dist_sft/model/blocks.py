"""The decoder blocks of a model: which of them recompute their activations, and whether they are compiled."""

from typing import TYPE_CHECKING, Any

from torch import nn

from dist_sft.core.errors import ModelError
from dist_sft.model.text_path import is_beside_text

if TYPE_CHECKING:
    from transformers.modeling_layers import GradientCheckpointingLayer


def blocks_of(model: nn.Module) -> "list[GradientCheckpointingLayer]":
    """The decoder blocks, from the first to the last; not those of a tower that text never reaches."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # 3 s, which no driver of a run should wait

    return [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and not is_beside_text(module)
    ]


def recompute_activations(model: Any, share: float, zero3: bool, frozen: bool) -> int:
    """Keep only the inputs of a share of the blocks, spread evenly, of at least one; how many recompute.

    zero3: re-entrant, for a partitioned parameter has no shape between two uses. frozen: the embeddings are not
    trained, so their output must be made to need a gradient.
    """
    model.gradient_checkpointing_enable({"use_reentrant": zero3})
    if frozen:
        model.enable_input_require_grads()
    count, blocks = 0, blocks_of(model)
    share = max(share, 1 / max(len(blocks), 1))
    for number, block in enumerate(blocks):
        block.gradient_checkpointing = int((number + 1) * share + 1e-9) > int(number * share + 1e-9)
        count += block.gradient_checkpointing
    return count


def compile_blocks(model: nn.Module) -> int:
    """Let torch.compile fuse what each block does between its matrix products; how many were compiled.

    One graph serves all blocks, and packs of any length. Raises ModelError for a model without blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ModelError(
            "it has no blocks that could be compiled", where=type(model).__name__, fix="set model.compile=false"
        )
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)
