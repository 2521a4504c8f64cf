"""Is a difference rounding, or not? The one criterion of all that compares numbers.

Where a model can be computed in float64, and in float64 throughout (`in_float64`), that answers: rounding is 1e-12 of
the largest value there, and whatever else differs is not. Where it cannot (an engine on GPUs, ranks of DeepSpeed), a
difference is compared with how much the same computation differs from itself for no other reason than rounding.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

EXACT = 1e-9
"""Of float64, relative to the largest value: a thousand times what a deep model rounds there. tools/false_alarms.py
measures both that and what the smallest fault moves."""
FACTOR = 32
"""By how much rounding may exceed what was seen of it."""
UNITS, SUMS = 4, 64
"""Units in the last place that numbers may differ by, which were rounded once; and those of float32, in which their
sums are added up in another order."""


def allowed(dtype: torch.dtype, own: float = 0.0) -> float:
    """The largest difference that is rounding, relative to the largest value.

    dtype: of the numbers. own: how far the same computation is from itself, for no reason but rounding: other row
    counts, or numbers that were off by one unit in the last place. Not asked for in float64.
    """
    if dtype == torch.float64:
        return EXACT
    return max(FACTOR * own, UNITS * torch.finfo(dtype).eps + SUMS * torch.finfo(torch.float32).eps)


def difference(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest difference, relative to the largest value that was expected; not a number where one is none."""
    pairs = list(zip(found, expected, strict=True))
    size = largest(float(of.abs().max()) for _, of in pairs)
    return largest(float((one - of).abs().max()) for one, of in pairs) / max(size, 1e-12)


def largest(figures: Iterable[float]) -> float:
    """Of figures >= 0; 0 where there are none. Not a number where one is none: Python's max would lose it."""
    return float(np.max([0.0, *figures]))


def nudged(values: Tensor) -> Tensor:
    """Each number off by about one unit in the last place, up or down in turn."""
    signs = torch.ones_like(values)
    signs.view(-1)[::2] = -1
    return values + values * signs * torch.finfo(values.dtype).eps


class _Float64(TorchFunctionMode):
    """Code that asks for float32, as the norms of many models do, gets float64."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return function(*map(_wide, args), **named)


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute with nothing below float64, whatever a model's code asks for. Its parameters are whoever's who made it.

    For the CPU: on a GPU, autograd runs in threads of its own.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Float64():
            yield
    finally:
        torch.set_default_dtype(before)
