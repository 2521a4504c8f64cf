"""DeepSpeed: build the engine, check that it is the one asked for, and make one update.

DeepSpeed averages gradients over ranks; the loss of each pack is scaled so that the average is the gradient of the
whole step (`loss.step_loss`). The number of packs may differ from step to step, so the loop marks the last one itself.
"""

import math
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_sft.config.sections import TrainSection
from dist_sft.core.errors import TrainingError
from dist_sft.data.pack import StepShare
from dist_sft.train.loss import needs_mean, step_loss, token_loss
from dist_sft.train.optimizer import build_optimizer
from dist_sft.train.parts import TokenScores


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


def update(
    engine: Any, model: TokenScores, share: StepShare, learning_rate: float, settings: TrainSection
) -> tuple[float, float] | None:
    """One optimizer update from this rank's packs.

    Returns the loss of the whole step (nats per unit of weight) and the norm of its gradient before clipping, both the
    same on every rank; a step of which no row can be learned (all are in the ledger) updates nothing: None.
    Raises TrainingError on every rank if the loss or the gradient is not finite; for the loss, before the update.
    """
    if not share.totals.samples:
        return None
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate_factor", 1.0)
    world, loss = dist.get_world_size(), torch.zeros((), device=engine.device)
    for pack in share.packs:
        last = pack is share.packs[-1]
        scores, weights = model.token_scores(engine, pack, share.step, needs_mean(settings.loss))
        part = step_loss(token_loss(scores, settings.loss), weights, share.totals.weight, world)
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(part, scale_wrt_gas=False)
        loss += part.detach()
        if last:
            dist.all_reduce(loss)
            _guard("loss", float(loss), share)
            norm = _norm_without_zero(engine)
        engine.step()
    if not engine.was_step_applied():  # DeepSpeed skips an update with gradients that are not finite
        _guard("gradient norm", math.nan, share)
    norm = norm if norm is not None else float(engine.get_global_grad_norm())
    _guard("gradient norm", norm, share)
    return float(loss) / world, norm


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
