"""Shapes that settings share: how a rate, or a noise, falls over steps or over depth."""

import math
from typing import Literal

CurveShape = Literal["constant", "linear", "cosine"]


def fall(shape: CurveShape, done: float) -> float:
    """1 at done = 0; linear and cosine (Loshchilov & Hutter, 2017) are 0 at done = 1."""
    match shape:
        case "constant":
            return 1.0
        case "linear":
            return 1 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))


def count(amount: float, steps: int) -> int:
    """A share of all steps if below 1, else a number of steps."""
    return round(amount * steps) if amount < 1 else round(amount)
