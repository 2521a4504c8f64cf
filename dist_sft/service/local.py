"""The whole service in one process: a rank's own dealer on a thread of its own, and threads that encode.

For debugging, and for a run without Ray. Each rank then encodes every sample of a step, for the deal needs all lengths.
"""

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dist_sft.data.packing import Packer
from dist_sft.service.dealing import StepDealer
from dist_sft.service.messages import Ask, Chunk, ChunkFacts, Feed, Ticket


class ThreadEncoders:
    """Encodes in this process, one chunk after the other: a tokenizer uses all cores by itself."""

    def __init__(self, feeds: Mapping[str, Feed]) -> None:
        self.feeds, self.capacity = feeds, 1
        self._pool = ThreadPoolExecutor(1, "encode")

    async def encode(self, stream: str, begin: int, end: int) -> tuple[ChunkFacts, Chunk]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.feeds[stream].chunk, begin, end)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class LocalLink:
    """A DealerLink to a dealer in this process."""

    def __init__(self, feeds: Mapping[str, Feed], packer: Packer, context_length: int, budget: int) -> None:
        self.encoders = ThreadEncoders(feeds)
        streams = {name: feed.steps for name, feed in feeds.items()}
        self.dealer = StepDealer(streams, packer, self.encoders, context_length, budget, alone=True)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="dealer", daemon=True).start()

    def share(self, ask: Ask) -> Ticket:
        return self._call(self.dealer.share(ask))

    def fetch(self, ticket: Ticket) -> Mapping[int, Chunk]:
        return {number: chunk for number, (_, chunk) in ticket.chunks.items()}

    def taken(self, session: int, stream: str, rank: int, upto: int) -> None:
        self._call(self.dealer.taken(session, stream, rank, upto))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end)
        self.encoders.close()

    def _end(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_soon(self._loop.stop)

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
