"""A model without weights, on torch's meta device."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.pytorch_utils import Conv1D

from dist_sft.core.errors import ModelError
from dist_sft.model.blocks import blocks_of
from dist_sft.model.configuration import auto_class, quiet
from dist_sft.model.layout import Layer
from dist_sft.model.text_path import (
    beside_text,
    freeze_beside_text,
    has_parts_beside_text,
    is_beside_text,
    parts_beside_text,
)


def laid_out(config: PretrainedConfig, dtype: torch.dtype | None = None) -> Any:
    """The model. The config stays as it is, which transformers would write into."""
    with torch.device("meta"), quiet():
        return auto_class(config).from_config(copy.deepcopy(config), dtype=dtype or config.dtype)


def count_parameters(config: PretrainedConfig) -> int:
    """Of the model."""
    return sum(parameter.numel() for parameter in laid_out(config).parameters())


def lay_out(config: PretrainedConfig) -> dict[str, Any]:
    """A `Layout` as JSON values. Raises ModelError."""
    try:
        model = laid_out(config)
    except Exception as error:  # of somebody else's model: whatever it raises
        raise ModelError(
            f"{config.model_type} cannot be laid out as its config.json says: {type(error).__name__}: "
            f"{(str(error).strip().splitlines() or [''])[0]}",
            fix="see that config.json is whole, and belongs to these weights; or choose another model",
        ) from error
    freeze_beside_text(model, beside_text(config))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {
        "shapes": shapes,
        "tied": tied_names(model),
        "converted": bool(get_model_conversion_mapping(model, add_legacy=False)),
        "positions": _positions(model),
        "experts": any(".experts." in name for name in shapes),
        "parameters": {name: parameter.numel() for name, parameter in model.named_parameters()},
        "same": {name: names[id(parameter)] for name, parameter in every if names[id(parameter)] != name},
        "layers": list(layers_of(model)),
        "beside": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "beside_parts": parts_beside_text(model) if has_parts_beside_text(model) else {},
    }


def layers_of(model: Any) -> Iterator[Layer]:
    """Layers that can have an adapter, in order. all-linear means all linear ones but the head; of a model with parts
    that text never reaches, those of its decoder blocks."""
    head, anywhere = model.get_output_embeddings(), not has_parts_beside_text(model)
    inside = {id(module) for block in blocks_of(model) for module in block.modules()}
    for name, module in model.named_modules():
        if is_beside_text(module):
            continue
        usual = module is not head and (anywhere or id(module) in inside)
        if isinstance(module, nn.Linear):
            yield Layer(name, "linear", module.in_features, module.out_features, module is head, usual)
        elif isinstance(module, Conv1D):
            yield Layer(name, "linear", module.nx, module.nf, module is head, usual)
        elif isinstance(module, nn.Embedding):
            yield Layer(name, "embedding", module.num_embeddings, module.embedding_dim, module is head, usual=False)


def tied_names(model: Any) -> dict[str, str]:
    """Names in a model's state dict that are another's weight, and that one."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


OFFSET = 8
"""Rows at most that a table of positions has beside them (OPT: 2, for padding)."""


def _positions(model: Any) -> int | None:
    """Rows of a table of positions: an embedding that is not of tokens, or a buffer, as long as config.json says."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 2:
        return None
    tokens = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and id(m) not in tokens]
    tables += [buffer for _, buffer in model.named_buffers() if buffer.dim() > 1]
    rows = [table.shape[0] for table in tables if longest - OFFSET <= table.shape[0] <= longest + OFFSET]
    return min([longest, *rows]) if rows else None
