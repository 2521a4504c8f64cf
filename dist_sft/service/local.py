"""The step service inside one process: every rank encodes the whole step and keeps its own packs.

Rows.encode -> Dealer.deal -> StepShare

The plan needs the lengths of all samples of the step, and encoding them again on each rank needs no communication.
A thread works ahead, so that a rank does not wait for the tokenizer.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from dist_sft.data.encoding import EncodedStep, Rows
from dist_sft.data.ledger import Entry, Ledger
from dist_sft.data.order import Order, Steps
from dist_sft.data.pack import StepShare, build_pack
from dist_sft.data.packing import Dealer, StepPlan

AHEAD = 2
"""Steps that are encoded before they are asked for."""


class LocalStepService:
    """Shares of one rank, in order, from any step on."""

    def __init__(self, rows: Rows, steps: Steps, dealer: Dealer, rank: int, ledger: Ledger) -> None:
        self.rows, self.steps, self.dealer, self.rank, self.ledger = rows, steps, dealer, rank, ledger

    def __len__(self) -> int:
        """Steps of the whole run."""
        return len(self.steps)

    def shares(self, start: int) -> Iterator[StepShare]:
        """The shares of steps start, start + 1, ... to the end. Raises RowError, DataError."""
        with ThreadPoolExecutor(1, "encode") as pool:
            wanted = iter(range(start, len(self.steps)))
            pending = deque(pool.submit(self.encode, step) for step in islice(wanted, AHEAD))
            while pending:
                encoded = pending.popleft().result()
                pending.extend(pool.submit(self.encode, step) for step in islice(wanted, 1))
                self._account(encoded)
                yield share_of(encoded, self.dealer.deal([len(s) for s in encoded.samples]), self.rank)

    def encode(self, step: int) -> EncodedStep:
        return self.rows.encode(step, self.steps.samples(step))

    def _account(self, encoded: EncodedStep) -> None:
        if not encoded.entries:
            return
        self.ledger.add(list(encoded.entries))
        seen = min((encoded.step + 1) * self.steps.samples_per_step, self.steps.positions)
        self.ledger.check_share(seen, self.rows.data.max_bad_share)


def share_of(encoded: EncodedStep, plan: StepPlan, rank: int) -> StepShare:
    """One rank's part of an encoded step."""
    ids, samples = encoded.ids, encoded.samples
    return StepShare(
        step=encoded.step,
        packs=tuple(build_pack([ids[i] for i in pack], [samples[i] for i in pack]) for pack in plan.packs[rank]),
        samples=ids,
        weight=sum(sample.total_weight for sample in samples),
        tokens=sum(len(sample) for sample in samples),
        squares=sum(len(sample) ** 2 for sample in samples),
        supervised=sum(sample.supervised for sample in samples),
        balance=plan.balance,
    )


def evaluation_shares(
    rows: Rows, dealer: Dealer, rank: int, per_step: int, limit: int | None
) -> tuple[list[StepShare], list[Entry]]:
    """A rank's part of the held-out rows, or of `limit` of them that are picked once and for all; and those left out.

    Raises RowError for rows that data.bad_rows forbids, DataError where none can be scored.
    """
    count = min(limit or sum(rows.lengths), sum(rows.lengths))
    steps = Steps(Order(rows.lengths, seed=0), per_step, count)
    rows.probe(steps)
    encoded = [rows.encode(step, steps.samples(step)) for step in range(len(steps))]
    shares = [share_of(part, dealer.deal([len(s) for s in part.samples]), rank) for part in encoded if part.ids]
    return shares, [entry for part in encoded for entry in part.entries]
