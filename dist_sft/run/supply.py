"""A rank's link to the data: the service that the driver started, or one of its own.

Brief, name of a service | None -> links -> shares of training steps and held-out rows
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import DataError
from dist_sft.data.groups import SOURCE
from dist_sft.data.ledger import Ledger
from dist_sft.data.pack import StepShare
from dist_sft.run.data import HELD_OUT, TRAIN, Brief, RunData
from dist_sft.run.opened import OpenedRun
from dist_sft.service.client import DealerLink, StepClient
from dist_sft.service.local import LocalLink


@dataclass(frozen=True)
class Offer:
    """What the driver tells each rank where there is a service.

    service  name of its dealer
    started  when, by time.time
    """

    brief: Brief
    service: str
    started: float


@dataclass(frozen=True)
class Supply:
    """One rank's link to the data, and what it knows of it. session: number of this start of the ranks."""

    brief: Brief
    link: DealerLink
    config: RunConfig
    world: int
    rank: int
    session: int

    def training(self, ledger: Ledger, note: Callable[[int, str], None]) -> StepClient:
        """Shares of the training steps. ledger: gets what is dropped or cut. note: see StepClient."""
        return self._client(TRAIN, ledger, note)

    def held_out(self) -> tuple[list[StepShare], Counter[str]]:
        """This rank's shares of the held-out rows, and how many of these are left out, by reason.

        Raises RowError for rows that data.bad_rows forbids, DataError where none of a source can be scored.
        """
        if HELD_OUT not in self.brief.steps:
            return [], Counter()
        ledger = Ledger()
        shares = [share for share in self._client(HELD_OUT, ledger).shares(0) if share.totals.samples]
        scored = {total.id for share in shares for total in share.totals.groups if total.weight}
        for number, (by, name) in enumerate(self.brief.groups[HELD_OUT].keys):
            if by == SOURCE and number not in scored:
                what = f"no held-out row of '{name}' can be scored"
                raise DataError(what, where="eval", fix="look at it with dist-sft check")
        return shares, ledger.counts

    def _client(self, stream: str, ledger: Ledger, note: Callable[[int, str], None] = lambda *_: None) -> StepClient:
        settings = self.config.service
        return StepClient(
            self.link,
            stream,
            self.brief.steps[stream],
            self.session,
            self.world,
            self.rank,
            settings.prefetch,
            ledger,
            self.config.data.max_bad_share if stream == TRAIN else 1.0,
            note,
        )


def connect(offer: Offer | None, run: OpenedRun, world: int, rank: int, session: int) -> Supply:
    """The supply of one rank. Without an offer it reads the data itself. Raises SftError."""
    if offer:
        from dist_sft.service.members import RayLink

        remote = RayLink(offer.service, rank == 0, run.config.service.stall, offer.started)
        return Supply(offer.brief, remote, run.config, world, rank, session)
    data, config = RunData.of(run), run.config
    data.probe()
    packer = data.packer(world)
    local = LocalLink(data.feeds, packer, config.data.context_length, config.service.budget)
    return Supply(data.brief(), local, config, world, rank, session)
