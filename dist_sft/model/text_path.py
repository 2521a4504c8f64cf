"""What of a model text never reaches: towers for images and sound, and what leads from them to the language model.

config.json ─ laid out on the meta device, text forward and backward ─> names of the parameters without a gradient

They are frozen: an optimizer with weight decay would move them, and adapters below them would learn nothing. Found out
by what runs, not by names. Models of text alone have nothing of the kind, and are not tried.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model import attention
from dist_sft.model.configuration import auto_class, first_line, quiet
from dist_sft.model.context import PackContext

TOKENS = 3
_found: dict[str, frozenset[str]] = {}
"""By the content of a config."""


def is_composite(config: PretrainedConfig) -> bool:
    """Whether a model may have other parts than the one for text."""
    return any(isinstance(part, PretrainedConfig) for part in vars(config).values())


def beside_text(config: PretrainedConfig) -> frozenset[str]:
    """Names of the parameters that no text reaches, each under all of its names. Raises ModelError.

    Not while transformers takes every new model for one of ZeRO-3: it would partition this one, too.
    """
    if not is_composite(config):
        return frozenset()
    content = config.to_json_string(use_diff=False)
    if content not in _found:
        _found[content] = _beside(config)
    return _found[content]


def freeze_beside_text(model: Any, names: frozenset[str]) -> int:
    """Freeze what text never reaches, and note on each module whether it is such; how many parameters.

    model: transformers' own, before adapters. names: see `beside_text`. Blocks, compilation and adapters look at
    `is_beside_text`.
    """
    frozen = {name: p for name, p in model.named_parameters(remove_duplicate=False) if name in names}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    for path, module in model.named_modules() if names else ():
        inside = [name for name, _ in module.named_parameters(path, remove_duplicate=False)]
        object.__setattr__(module, "beside_text", bool(inside) and names.issuperset(inside))
    return sum(getattr(p, "ds_numel", p.numel()) for p in {id(p): p for p in frozen.values()}.values())


def is_beside_text(module: nn.Module) -> bool:
    """Whether no text reaches any parameter inside a module; False where `freeze_beside_text` was never called."""
    return bool(getattr(module, "beside_text", False))


def has_parts_beside_text(model: nn.Module) -> bool:
    """Whether `freeze_beside_text` found any."""
    return hasattr(model, "beside_text")


def parts_beside_text(model: nn.Module) -> dict[str, int]:
    """The outermost parts of a model that text never reaches, with their numbers of parameters; after
    `freeze_beside_text`."""
    parts: dict[str, int] = {}

    def look(module: nn.Module, path: str) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                parts[f"{path}{name}"] = parameter.numel()
        for name, child in module.named_children():
            if is_beside_text(child):
                parts[f"{path}{name}"] = sum(p.numel() for p in child.parameters())
            else:
                look(child, f"{path}{name}.")

    look(model, "")
    return parts


def _beside(config: PretrainedConfig) -> frozenset[str]:
    attention.register()
    config, device = copy.deepcopy(config), torch.device("meta")
    context = PackContext()
    try:
        with device, quiet():
            model = auto_class(config).from_config(config, dtype=torch.float32, attn_implementation=attention.SEGMENTS)
            context.attach(model)
            sample = EncodedSample(np.zeros(TOKENS, np.int32), np.zeros(TOKENS, np.float32))
            context.enter(build_pack([SampleId(0, 0, 0)], [sample]), device, 0, None)
            ids = torch.zeros(1, TOKENS, dtype=torch.int64)
            model.eval()(input_ids=ids, position_ids=context.positions[None], use_cache=False).logits.sum().backward()
    except Exception as error:  # of somebody else's model: whatever it raises
        raise ModelError(
            f"what of {config.model_type} text reaches cannot be told: {type(error).__name__}: {first_line(error)}",
            fix="choose another model, or the language model inside it saved on its own",
        ) from error
    return frozenset(name for name, p in model.named_parameters(remove_duplicate=False) if p.grad is None)
