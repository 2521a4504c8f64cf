"""The optimizer that DeepSpeed shards."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dist_sft.config.sections import Optimizer as OptimizerSettings


def build_optimizer(module: nn.Module, settings: OptimizerSettings, learning_rate: float, offloaded: bool) -> Optimizer:
    """An optimizer over the parameters that are trained. offloaded: its states and update are on the CPU."""
    groups = parameter_groups(module, settings.weight_decay)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum)
    options: dict[str, Any] = {"lr": learning_rate, "betas": settings.betas, "eps": settings.eps}
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    return torch.optim.AdamW(groups, fused=torch.cuda.is_available(), **options)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not. Under ZeRO-3 a parameter's own shape is `ds_shape`."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) >= 2]
    vectors = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
