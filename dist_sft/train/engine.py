"""DeepSpeed: build the engine, check that it is the one asked for, and make one update.

DeepSpeed averages gradients over ranks; the loss of each pack is scaled so that the average is the gradient of the
whole step (`loss.step_loss`). The number of packs may differ from step to step, so the loop marks the last one itself.
"""

import math
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_sft.config.sections import TrainSection
from dist_sft.core.errors import TrainingError
from dist_sft.core.results import GroupLoss
from dist_sft.data.groups import Groups
from dist_sft.data.pack import StepShare
from dist_sft.evaluate.sums import add_by_group
from dist_sft.model.packed import PackedModel
from dist_sft.train.loss import needs_mean, step_loss, token_loss
from dist_sft.train.optimizer import build_optimizer


def build_engine(
    module: nn.Module, deepspeed_config: dict[str, Any], settings: TrainSection, b_rate_ratio: float = 1.0
) -> Any:
    """The DeepSpeedEngine around a model. Raises TrainingError if it is not what the configuration asks for."""
    zero = deepspeed_config.get("zero_optimization", {})
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=build_optimizer(module, settings.optimizer, settings.learning_rate, offloaded, b_rate_ratio),
        config=deepspeed_config,
        dist_init_required=False,
    )
    _check_engine(engine, zero.get("stage", 0))
    return engine


def _check_engine(engine: Any, stage: int) -> None:
    """DeepSpeed and its integrations fall back to other engines without a word; a wrong one ends the run here."""
    if engine.zero_optimization_stage() != stage:
        raise TrainingError(f"DeepSpeed runs ZeRO stage {engine.zero_optimization_stage()}, not {stage}")
    if engine.dp_world_size != dist.get_world_size():
        raise TrainingError(f"DeepSpeed sees {engine.dp_world_size} ranks, not {dist.get_world_size()}")
    if stage == 3 and not all(hasattr(p, "ds_id") for p in engine.module.parameters()):
        raise TrainingError("ZeRO-3 did not partition every parameter")


@dataclass(frozen=True, slots=True)
class Measured:
    """What an update tells of its step, all ranks together.

    loss       nats per unit of weight
    grad_norm  of the whole gradient before clipping
    groups     losses of the groups with a loss weight
    """

    loss: float
    grad_norm: float
    groups: tuple[GroupLoss, ...]


def update(
    engine: Any, model: PackedModel, share: StepShare, learning_rate: float, settings: TrainSection, groups: Groups
) -> Measured | None:
    """One optimizer update from this rank's packs.

    Returns the same on every rank; None where a step updates nothing, for none of its rows can be learned (all are in
    the ledger). Raises TrainingError on every rank if the loss or the gradient is not finite; for the loss, before the
    update.
    """
    if not share.totals.samples:
        return None
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_factor", 1.0)
    world, loss = dist.get_world_size(), torch.zeros((), device=engine.device)
    by_group = torch.zeros(len(groups), dtype=torch.float64, device=engine.device)
    for pack in share.packs:
        last = pack is share.packs[-1]
        samples = model.sample_of(pack)
        scores, weights = model.token_scores(engine, pack, share.step, needs_mean(settings.loss))
        losses = token_loss(scores, settings.loss)
        part = step_loss(losses, weights, share.totals.weight, world)
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(part, scale_wrt_gas=False)
        loss += part.detach()
        add_by_group(by_group, losses.detach() * weights, samples, pack)
        if last:
            sums = torch.cat([loss.double()[None], by_group])
            dist.all_reduce(sums)
            _guard("loss", float(sums[0]), share)
            norm = _norm_without_zero(engine)
        engine.step()
    if not engine.was_step_applied():  # DeepSpeed skips an update with gradients that are not finite
        _guard("gradient norm", math.nan, share)
    norm = norm if norm is not None else float(engine.get_global_grad_norm())
    _guard("gradient norm", norm, share)
    return Measured(float(sums[0].float()) / world, norm, groups.losses(sums[1:].tolist(), share.totals.groups))


def _norm_without_zero(engine: Any) -> float | None:
    """DeepSpeed does not tell the norm of plain float32 data parallelism; None where it does."""
    if engine.zero_optimization_stage() or engine.bfloat16_enabled():
        return None
    norms = [p.grad.norm(dtype=torch.float64) for p in engine.module.parameters() if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _guard(name: str, value: float | Tensor, share: StepShare) -> None:
    if math.isfinite(value):
        return
    rows = ", ".join(f"{sample.source}:{sample.row}" for pack in share.packs for sample in pack.samples)
    raise TrainingError(
        f"the {name} is {value}; this rank's samples (source:row) are {rows or 'none'}",
        where=f"step {share.step + 1}, rank {dist.get_rank()}",
        fix=f"see all samples with dist-sft steps --from {share.step}, look at rows with dist-sft preview, lower "
        "train.learning_rate, or lengthen train.warmup; the newest checkpoint is from before this step",
    )
