"""A rank's side of the service: asks for its share some steps ahead, gathers it, and hands it over in order."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Protocol

from dist_sft.data.ledger import Ledger
from dist_sft.data.pack import Pack, StepShare, build_pack
from dist_sft.service.messages import Ask, Chunk, Place, Ticket


class ChunksLost(Exception):
    """What a ticket refers to is gone with the process or node that held it. missing: as in Ask."""

    def __init__(self, missing: tuple[tuple[int, int], ...]) -> None:
        super().__init__(f"{len(missing)} chunks are lost")
        self.missing = missing


class DealerLink(Protocol):
    """The way to the dealer, in this process or in the cluster. Calls block, and may come from several threads."""

    def share(self, ask: Ask) -> Ticket:
        """Raises SftError: the row's, or that the service is gone for good."""
        ...

    def fetch(self, ticket: Ticket) -> Mapping[int, Chunk]:
        """The chunks of a ticket, by number. Raises ChunksLost."""
        ...

    def taken(self, session: int, stream: str, rank: int, upto: int) -> None: ...


class StepClient:
    """Shares of one rank, in order, from any step on."""

    def __init__(
        self,
        link: DealerLink,
        stream: str,
        steps: int,
        session: int,
        world: int,
        rank: int,
        prefetch: int,
        ledger: Ledger,
        max_bad_share: float,
        note: Callable[[int, str], None] = lambda step, text: None,
    ) -> None:
        """
        Args:
            steps: of the whole stream.
            session: see Ask; the same on all ranks of one start.
            prefetch: steps that are asked for before they are taken.
            ledger: gets what the dealer tells this rank of rows that were dropped or cut.
            note: gets the step, and what a person should know of the data side.
        """
        self.link, self.stream, self.steps, self.prefetch = link, stream, steps, prefetch
        self.session, self.world, self.rank = session, world, rank
        self.ledger, self.max_bad_share, self.note = ledger, max_bad_share, note
        self._taken = 0

    def __len__(self) -> int:
        """Steps of the whole stream."""
        return self.steps

    def shares(self, start: int) -> Iterator[StepShare]:
        """The shares of steps start, start + 1, ... to the end. Raises SftError."""
        pool = ThreadPoolExecutor(self.prefetch, f"share-{self.stream}")
        self._taken = start
        try:
            wanted = iter(range(start, self.steps))
            pending: deque[Future[tuple[StepShare, Ticket]]] = deque(
                pool.submit(self._gather, step) for step in islice(wanted, self.prefetch)
            )
            while pending:
                share, ticket = pending.popleft().result()
                self._taken = share.step + 1
                if (further := next(wanted, None)) is not None:
                    pending.append(pool.submit(self._gather, further))  # tells the dealer what is taken, too
                else:
                    self.link.taken(self.session, self.stream, self.rank, self._taken)
                self._account(ticket)
                yield share
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            with suppress(Exception):  # a service that is gone needs no goodbye
                self.link.taken(self.session, self.stream, self.rank, self.steps)

    def _gather(self, step: int) -> tuple[StepShare, Ticket]:
        missing: tuple[tuple[int, int], ...] = ()
        while True:
            ask = Ask(self.session, self.stream, self.world, self.rank, step, self._taken, missing)
            ticket = self.link.share(ask)
            try:
                chunks = self.link.fetch(ticket)
            except ChunksLost as lost:
                missing = lost.missing
                continue
            return _share(ticket, chunks), ticket

    def _account(self, ticket: Ticket) -> None:
        for text in ticket.notes:
            self.note(ticket.step, text)
        if ticket.entries:
            self.ledger.add(list(ticket.entries))
            self.ledger.check_share(ticket.seen, self.max_bad_share)


def _share(ticket: Ticket, chunks: Mapping[int, Chunk]) -> StepShare:
    def pack(places: tuple[Place, ...]) -> Pack:
        samples = [chunks[place.chunk].sample(place.index) for place in places]
        groups = [chunks[place.chunk].groups[place.index] for place in places]
        return build_pack([place.id for place in places], samples, ticket.multiple, groups)

    return StepShare(ticket.step, tuple(map(pack, ticket.packs)), ticket.totals)
