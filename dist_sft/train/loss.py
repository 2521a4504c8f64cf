"""The loss of a token, and of a step: split over packs so that the parts add up to exactly the whole."""

from torch import Tensor

from dist_sft.config.sections import LossSection


def token_loss(scores: Tensor, settings: LossSection) -> Tensor:
    """float32[P], nats: the loss of each supervised token.

    scores: float32[P, 3]: log of the sum of exp(logits), the target's logit, the mean logit.

    nll            -log p(target)
    dft            p(target), held constant, times that: what imitation gains by is not divided by p (Wu et al., 2025,
                   "On the generalization of SFT", equation 9)
    label smoothing  part of the target's weight is spread over the vocabulary (Szegedy et al., 2016, section 7)
    z-loss         keeps the sum of exp(logits) near 1 (Chowdhery et al., 2022, PaLM, section 5)
    """
    partition, target, mean = scores.unbind(1)
    loss = partition - target
    if settings.kind == "dft":
        loss = loss * (target - partition).exp().detach()
    if settings.label_smoothing:
        loss = loss + settings.label_smoothing * (target - mean)
    if settings.z_loss:
        loss = loss + settings.z_loss * partition.square()
    return loss


def needs_mean(settings: LossSection) -> bool:
    """Whether `token_loss` looks at the mean logit."""
    return settings.label_smoothing > 0


def step_loss(losses: Tensor, weights: Tensor, step_weight: float, world: int) -> Tensor:
    """Weighted loss of one pack, scaled for DeepSpeed.

    Args:
        losses: float32[P], nats, at the supervised positions of this rank's pack.
        weights: float32[P], loss weights at the same positions.
        step_weight: sum of weights over the whole step, all ranks and micro-steps; > 0.
        world: number of data-parallel ranks; undoes DeepSpeed's mean over ranks.
    Returns:
        float32[], whose gradients summed over micro-steps and averaged over ranks are those of the unpacked batch.
    """
    return (losses * weights).sum() * (world / step_weight)
