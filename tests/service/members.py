"""The service in one process, with members that dawdle, die and lose what they hold, on command."""

import asyncio
import random
import threading
from concurrent.futures import CancelledError

from dist_sft.data.ledger import Ledger
from dist_sft.data.packing import Packer
from dist_sft.service.client import ChunksLost, StepClient
from dist_sft.service.dealing import StepDealer


class Encoders:
    """Encodes after a random delay; every so often an encoder dies half-way, and another starts the chunk again."""

    def __init__(self, feeds, count, dice, deaths):
        self.feeds, self.capacity, self.dice, self.deaths = feeds, 2 * count, dice, deaths
        self.opened = []

    async def encode(self, stream, begin, end):
        while self.dice.random() < self.deaths:
            await asyncio.sleep(self.dice.random() / 500)
        await asyncio.sleep(self.dice.random() / 500)
        self.opened.append((stream, begin, end))
        return self.feeds[stream].chunk(begin, end)


def on_ranks(world, take, seconds=60):
    """take(rank) of all ranks at once, each on a thread; the first error of any, and what they return, by rank."""
    found, errors = [None] * world, []

    def one(rank):
        try:
            found[rank] = take(rank)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a rank is stuck"
    return found


class Cluster:
    """A dealer that can be killed, its encoders, and links to it."""

    def __init__(self, feeds, encoders=1, dice=None, deaths=0.0, losses=0.0, budget=1 << 24, context=120, dealer=None):
        self.dice, self.losses = dice or random.Random(0), losses
        self.encoders = Encoders(feeds, encoders, self.dice, deaths)
        streams = {name: feed.steps for name, feed in feeds.items()}
        packing = dealer or Packer(1, 3 * context)
        self.new_dealer = lambda: StepDealer(streams, packing, self.encoders, context, budget)
        self.dealer = self.new_dealer()
        self.fate = {}
        self.calls, self.kill_at = 0, set()
        self.loop = asyncio.new_event_loop()
        self.tasks = set()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def kill(self):
        """The dealer is gone with all it knew, and another has its name."""

        def swap():
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.dealer = self.new_dealer()

        self.loop.call_soon_threadsafe(swap)

    def share(self, ask):
        self.calls += 1
        if self.calls in self.kill_at:
            self.kill()
        while True:
            try:
                return asyncio.run_coroutine_threadsafe(self.later(ask), self.loop).result(60)
            except CancelledError:
                continue

    async def later(self, ask):
        return await self.dealer.share(ask)

    def fetch(self, ticket):
        gone = [(number, version) for number, (version, chunk) in ticket.chunks.items() if self.is_gone(chunk)]
        if gone:
            raise ChunksLost(tuple(gone))
        return {number: chunk for number, (_, chunk) in ticket.chunks.items()}

    def is_gone(self, chunk):
        """A chunk that is lost once is lost for all ranks, and for ever."""
        return self.fate.setdefault(id(chunk), (self.dice.random() < self.losses, chunk))[0]

    def taken(self, session, stream, rank, upto):
        asyncio.run_coroutine_threadsafe(self.dealer.taken(session, stream, rank, upto), self.loop)

    def close(self):
        self.kill()
        self.loop.call_soon_threadsafe(lambda: self.loop.call_soon(self.loop.stop))
        self.thread.join(10)
        self.loop.close()

    def client(self, steps, world, rank, prefetch=2, session=1, ledger=None, stream="train"):
        return StepClient(self, stream, steps, session, world, rank, prefetch, ledger or Ledger(), 1.0)

    def run(self, steps, world, start=0, stop=None, prefetch=2, session=1, ledger=None):
        """All ranks take their shares of steps start .. stop - 1 at their own pace; lists of shares by rank."""
        stop = steps if stop is None else stop

        def take(rank):
            client = self.client(steps, world, rank, prefetch, session, ledger if rank == 0 else None)
            shares = client.shares(start)
            taken = [next(shares) for _ in range(stop - start)]
            shares.close()
            return taken

        return on_ranks(world, take)
