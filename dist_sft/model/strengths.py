"""model.neftune as numbers: alpha by block and by step. Imports no torch."""

from dist_sft.config.noise import Depth, Neftune, NoiseSchedule
from dist_sft.core.curves import count, fall
from dist_sft.core.errors import ModelError


def strengths(settings: Neftune, blocks: int) -> dict[int, float]:
    """Alpha by block, of a model with this many; those without noise are left out. Raises ModelError."""
    layers = settings.layers
    if layers is None:
        chosen = {0: settings.alpha or 0.0}
    elif isinstance(layers, Depth):
        first, last = layers.first, layers.last
        shares = [fall(layers.shape, block / max(blocks - 1, 1)) for block in range(blocks)]
        chosen = {block: last + (first - last) * share for block, share in enumerate(shares)}
    else:
        chosen = {int(block): alpha for block, alpha in layers.items()}
    if any(block >= blocks for block in chosen):
        raise ModelError(
            f"there is no block {max(chosen)}: the model has {blocks}",
            where="model.neftune.layers",
            fix=f"use 0 (the embeddings) to {blocks - 1}",
        )
    return {block: alpha for block, alpha in chosen.items() if alpha}


def factor(schedule: NoiseSchedule, step: int, steps: int) -> float:
    """What alpha is multiplied with in update number `step` (from 0) of `steps`; as `train.schedule` counts."""
    warmup = count(schedule.warmup, steps)
    if step < warmup:
        return (step + 1) / warmup
    return schedule.end + (1 - schedule.end) * fall(schedule.shape, (step - warmup) / max(steps - warmup, 1))
