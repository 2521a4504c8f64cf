"""The optimizer that DeepSpeed shards."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dist_sft.config.sections import Optimizer as OptimizerSettings


def build_optimizer(module: nn.Module, settings: OptimizerSettings, learning_rate: float, offloaded: bool) -> Optimizer:
    """An optimizer over the parameters that are trained. offloaded: its states and update are on the CPU."""
    groups = parameter_groups(module, settings)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum)
    options: dict[str, Any] = {"lr": learning_rate, "betas": settings.betas, "eps": settings.eps}
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    return torch.optim.AdamW(groups, fused=torch.cuda.is_available(), **options)


def parameter_groups(module: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The trained parameters that decay, and those that do not; a group without any is left out."""
    embeddings = set() if settings.decay_embeddings else _embeddings(module)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decays = settings.decay == "all" or _dimensions(parameter) >= 2
            groups[decays and id(parameter) not in embeddings].append(parameter)
    return [
        {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
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
