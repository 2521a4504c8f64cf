"""Where the time of a step goes."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dist_sft.core.results import StepResult
from dist_sft.data.pack import StepShare
from dist_sft.train.engine import Measured


@dataclass
class StepClock:
    """Times steps from the moment that the loop asks for data; evaluation and saving are not counted.

    flops  (tokens, sum of squared lengths) -> forward and backward of these samples
    """

    flops: Callable[[float, float], float]
    _asked: float = 0.0
    _received: float = 0.0

    def waiting_for(self, shares: Iterable[StepShare]) -> Iterator[StepShare]:
        """The same shares; the time until each arrives is the time waited."""
        iterator = iter(shares)
        while True:
            self._asked = time.monotonic()
            share = next(iterator, None)
            if share is None:
                return
            self._received = time.monotonic()
            yield share

    def result(self, share: StepShare, measured: Measured | None, rate: float) -> StepResult:
        """All about the step that has ended. measured: None if nothing was updated."""
        return StepResult(
            step=share.step + 1,
            loss=measured.loss if measured else None,
            grad_norm=measured.grad_norm if measured else None,
            learning_rate=rate,
            tokens=share.totals.tokens,
            supervised=share.totals.supervised,
            source_tokens=share.totals.source_tokens,
            seconds=time.monotonic() - self._asked,
            waited=self._received - self._asked,
            micro_steps=len(share.packs),
            balance=share.totals.balance,
            fill=share.totals.fill,
            dummies=share.totals.dummies,
            padding=share.totals.padding,
            flops=self.flops(share.totals.tokens, share.totals.squares),
            groups=measured.groups if measured else (),
        )
