"""How far a run is from what it should be, in units of what is allowed: more than 1 is a failure."""

import torch

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from tests.ranks import records

ALLOWED = {"first loss": 1e-6, "losses": 1e-5, "gradient norms": 1e-4, "weights": 1e-5}
"""Relative, of the weights absolute. Without ZeRO a norm is summed by torch in float32, and off by up to 2e-5."""


def found(folder):
    """Losses, gradient norms and weights of a run."""
    steps = records(folder)
    return [step["loss"] for step in steps], [step["grad_norm"] for step in steps], consolidated(newest(folder))


def deviations(got, expected):
    """By quantity. Only weights that are expected are compared: a checkpoint may hold those of a frozen model too."""
    losses, norms = (_relative(ours, theirs) for ours, theirs in zip(got[:2], expected[:2], strict=True))
    differences = [(got[2][name].double() - value.double()).abs().max().item() for name, value in expected[2].items()]
    off = {
        "first loss": losses[0],
        "losses": losses.max(),
        "gradient norms": norms.max(),
        "weights": torch.tensor(differences).max(),
    }
    return {name: float(value) / ALLOWED[name] for name, value in off.items()}


def _relative(ours, theirs):
    ours, theirs = (torch.tensor(values, dtype=torch.float64) for values in (ours, theirs))
    return (ours - theirs).abs() / theirs.abs()


def right(off):
    """Whether nothing is off by more than is allowed; what is not a number is."""
    return all(value <= 1 for value in off.values())
