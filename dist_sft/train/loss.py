"""The loss of a step, split over packs so that the parts add up to exactly the whole."""

from torch import Tensor


def step_loss(nll: Tensor, weights: Tensor, step_weight: float, world: int) -> Tensor:
    """Weighted negative log-likelihood of one pack, scaled for DeepSpeed.

    Args:
        nll: float32[P], nats, at the supervised positions of this rank's pack.
        weights: float32[P], loss weights at the same positions.
        step_weight: sum of weights over the whole step, all ranks and micro-steps; > 0.
        world: number of data-parallel ranks; undoes DeepSpeed's mean over ranks.
    Returns:
        float32[], whose gradients summed over micro-steps and averaged over ranks are those of the unpacked batch.
    """
    return (nll * weights).sum() * (world / step_weight)
