"""Learning rates, a pure function of the step."""

from dist_sft.config.sections import TrainSection
from dist_sft.core.curves import count, fall


def learning_rate(settings: TrainSection, step: int, steps: int) -> float:
    """The rate of update number `step` (from 0) of `steps`.

    Warm-up rises linearly and reaches the full rate at its last update. Then constant; linear or cosine decay to
    min_learning_rate (Loshchilov & Hutter, 2017); or wsd: constant, then linear decay at the end (Hu et al., 2024,
    MiniCPM, section 4).
    """
    warmup = count(settings.warmup, steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    low = settings.min_learning_rate
    return low + (settings.learning_rate - low) * _remaining(settings, step, warmup, steps)


def _remaining(settings: TrainSection, step: int, warmup: int, steps: int) -> float:
    """1 at the end of warm-up; 0 after the last update of a decaying schedule."""
    if settings.schedule == "wsd":
        decay = max(count(settings.decay, steps), 1)
        return min(1.0, (steps - step) / decay)
    return fall(settings.schedule, (step - warmup) / max(steps - warmup, 1))
