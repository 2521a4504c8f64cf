"""The optimizer that DeepSpeed shards."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dist_sft.config.sections import Optimizer as OptimizerSettings
from dist_sft.core.errors import MissingExtra


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, learning_rate: float, offloaded: bool, b_rate_ratio: float = 1.0
) -> Optimizer:
    """An optimizer over the parameters that are trained. offloaded: its states and update are on the CPU.

    Raises MissingExtra where adamw8bit is asked for and bitsandbytes is not installed.
    """
    groups = parameter_groups(module, settings, b_rate_ratio)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum)
    options: dict[str, Any] = {"lr": learning_rate, "betas": settings.betas, "eps": settings.eps}
    if settings.name == "adamw8bit":
        return _eight_bit(groups, options)
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    return torch.optim.AdamW(groups, fused=torch.cuda.is_available(), **options)


def _eight_bit(groups: list[dict[str, Any]], options: dict[str, Any]) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingExtra(
            "bitsandbytes is not installed", where="train.optimizer.name=adamw8bit", fix="pip install dist-sft[gpu]"
        ) from error
    optimizer: Optimizer = AdamW8bit(groups, **options)
    return optimizer


def parameter_groups(module: nn.Module, settings: OptimizerSettings, b_rate_ratio: float = 1.0) -> list[dict[str, Any]]:
    """The trained parameters by whether they decay and how fast they are trained; a group without any is left out.

    rate_factor of a group is what the learning rate is multiplied by: b_rate_ratio for the matrices B of adapters.
    """
    embeddings = set() if settings.decay_embeddings else _embeddings(module)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {
        (decays, factor): [] for decays in (True, False) for factor in dict.fromkeys((1.0, b_rate_ratio))
    }
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = (settings.decay == "all" or _dimensions(parameter) >= 2) and id(parameter) not in embeddings
            groups[decays, b_rate_ratio if ".lora_B." in name else 1.0].append(parameter)
    return [
        {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0, "rate_factor": factor}
        for (decays, factor), parameters in groups.items()
        if parameters
    ]


def _embeddings(module: nn.Module) -> set[int]:
    """The ids of embeddings' parameters, and of their adapters; a head that shares their weights is among them."""
    tables = [p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)]
    adapters = [p for name, p in module.named_parameters() if "lora_embedding_" in name]
    return {id(parameter) for parameter in (*tables, *adapters)}


def _dimensions(parameter: nn.Parameter) -> int:
    """Under ZeRO-3 a parameter's own shape is `ds_shape`."""
    return len(getattr(parameter, "ds_shape", parameter.shape))
