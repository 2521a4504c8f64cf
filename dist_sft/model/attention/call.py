"""What every back end gets and gives."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dist_sft.model.context import PackContext


@dataclass(frozen=True, slots=True)
class Call:
    """One layer's attention.

    scaling     of the scores; None: 1 / sqrt(head size)
    window      tokens that a token sees, itself among them; None: all before it
    softcap     scores become softcap * tanh(score / softcap)
    dropout     share of the attention weights that is dropped in this pass; 0 in evaluation
    layer       its number in the model
    first_head  number of the first of the query heads that are here
    """

    scaling: float | None
    window: int | None
    softcap: float | None
    dropout: float
    layer: int
    first_head: int = 0


Kernel = Callable[[Tensor, Tensor, Tensor, PackContext, Call], Tensor]
"""query [T, H, D], key and value [T, G, D] of the whole pack, H a multiple of G -> [T, H, D]."""
