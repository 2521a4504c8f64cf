"""The optimizer that DeepSpeed shards."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dist_sft.config.sections import Optimizer as OptimizerSettings


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, learning_rate: float, offloaded: bool, b_rate_ratio: float = 1.0
) -> Optimizer:
    """An optimizer over the parameters that are trained. offloaded: its states and update are on the CPU."""
    groups = parameter_groups(module, settings.weight_decay, b_rate_ratio)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=settings.momentum)
    options: dict[str, Any] = {"lr": learning_rate, "betas": settings.betas, "eps": settings.eps}
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    return torch.optim.AdamW(groups, fused=torch.cuda.is_available(), **options)


def parameter_groups(module: nn.Module, weight_decay: float, b_rate_ratio: float = 1.0) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not. Under ZeRO-3 a parameter's own shape is `ds_shape`.

    rate_factor of a group is what the learning rate is multiplied by: b_rate_ratio for the matrices B of adapters.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [(name, p) for name, p in trained if len(getattr(p, "ds_shape", p.shape)) >= 2]
    vectors = [p for _, p in trained if len(getattr(p, "ds_shape", p.shape)) < 2]
    faster = [p for name, p in matrices if ".lora_B." in name and b_rate_ratio != 1]
    others = [p for name, p in matrices if ".lora_B." not in name or b_rate_ratio == 1]
    groups = [
        {"params": others, "weight_decay": weight_decay, "rate_factor": 1.0},
        {"params": faster, "weight_decay": weight_decay, "rate_factor": b_rate_ratio},
        {"params": vectors, "weight_decay": 0.0, "rate_factor": 1.0},
    ]
    return [group for group in groups if group["params"]]
