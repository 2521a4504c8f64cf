"""The service as Ray actors: encoders on chosen nodes, one named dealer beside the first, links from the ranks.

Every member may die or freeze. Ray starts it again (max_restarts), and whoever waited asks again; none of them holds
state that anyone would miss. The driver owns all of them, so they end with it.
"""

import asyncio
import gc
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dist_sft.core.errors import ClusterError, SftError
from dist_sft.data.packing import Packer
from dist_sft.service.client import ChunksLost
from dist_sft.service.dealing import StepDealer
from dist_sft.service.messages import Ask, Chunk, ChunkFacts, Feed, Ticket

QUEUED = 2
"""Chunks that an encoder has at a time: the one in work, and the next."""
ATTEMPTS = 8
"""Deaths of encoders in a row that one chunk survives."""
PATIENCE = 10
"""Stalls that a member may take to start (a process, its imports, a tokenizer), and an encoder for one chunk."""
OTHERS = 4
"""Silences of a dealer in a row after which ranks that do not keep watch replace it."""
GONE = 600.0
"""Seconds of errors without an answer after which the dealer is given up."""


class EncoderActor:
    """Encodes chunks of the feeds. Plain Python; `start` makes actors of it."""

    def __init__(self, feeds: Sequence[Any], threads: int) -> None:
        """feeds: one reference to a mapping of them, by name. Behind it no argument is Ray's to keep for a restart, of
        which it warns for each encoder: the driver keeps it, see `Service`. threads: of the tokenizer."""
        self.feeds: Mapping[str, Feed] = ray.get(feeds[0])
        os.environ["RAYON_NUM_THREADS"] = str(threads)  # read when it first encodes
        gc.freeze()  # what is here now stays: no need to look through it again and again

    def encode(self, stream: str, begin: int, end: int) -> tuple[ChunkFacts, Chunk]:
        """Positions [begin, end) of a stream. Raises RowError."""
        return self.feeds[stream].chunk(begin, end)

    @ray.method(concurrency_group="watch")
    def ready(self) -> bool:
        """Answers while a chunk is in work: the encoder lives."""
        return True


class RayEncoders:
    """Sends each chunk to the encoder with the least to do, and to another if that one dies or freezes."""

    def __init__(self, actors: list[Any], stall: float) -> None:
        """stall: seconds without an answer after which an encoder is replaced."""
        self.actors, self.stall = actors, stall
        self.capacity = QUEUED * len(actors)
        self._load = [0] * len(actors)
        self._up: set[int] = set()  # encoders that have answered since they were last started
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._broken: BaseException | None = None

    async def encode(self, stream: str, begin: int, end: int) -> tuple[ChunkFacts, Any]:
        for _ in range(ATTEMPTS):
            number = await self._free()
            self._load[number] += 1
            try:
                return await self._encode_on(self.actors[number], stream, begin, end)
            except RayTaskError as error:
                raise cause_of(error) from None
            except TimeoutError:
                self._up.discard(number)
                ray.kill(self.actors[number], no_restart=False)
            except RayError:
                self._up.discard(number)
            finally:
                self._load[number] -= 1
                self._changed.set()
        raise ClusterError(
            f"encoding failed {ATTEMPTS} times, with every encoder that tried it dead or frozen",
            where=f"{stream} samples {begin} to {end - 1}",
            fix="look at these rows with dist-sft steps, and at the memory of the nodes; or raise service.stall",
        )

    async def _encode_on(self, actor: Any, stream: str, begin: int, end: int) -> tuple[ChunkFacts, Any]:
        """Raises TimeoutError: the encoder is frozen, or has been at it for far too long."""
        facts, chunk = actor.encode.options(num_returns=2).remote(stream, begin, end)
        answer = asyncio.ensure_future(_answer(facts))
        for _ in range(PATIENCE):
            done, _ = await asyncio.wait([answer], timeout=self.stall)
            if done:
                return answer.result(), chunk
            await asyncio.wait_for(_answer(actor.ready.remote()), self.stall)  # at work, or frozen?
        raise TimeoutError

    async def _free(self) -> int:
        """The encoder with the least to do, once there is one."""
        while True:
            for number in set(range(len(self.actors))) - self._up - self._starting.keys():
                self._starting[number] = asyncio.get_running_loop().create_task(self._started(number))
            if self._broken:
                raise self._broken
            open_ = [number for number in self._up if self._load[number] < QUEUED]
            if open_:
                return min(open_, key=lambda i: (self._load[i], i))
            self._changed.clear()
            await self._changed.wait()

    async def _started(self, number: int) -> None:
        """Until an encoder answers. One that takes far too long is started once more."""
        try:
            while number not in self._up and not self._broken:
                try:
                    await asyncio.wait_for(_answer(self.actors[number].ready.remote()), PATIENCE * self.stall)
                    self._up.add(number)
                except TimeoutError:
                    ray.kill(self.actors[number], no_restart=False)
                except RayError as error:
                    if getattr(error, "actor_init_failed", False):  # no other start would end differently
                        self._broken = error
                    await asyncio.sleep(0.2)
        except Exception as error:  # noqa: BLE001  # whoever wants an encoder gets it
            self._broken = error
        finally:
            del self._starting[number]
            self._changed.set()


async def _answer(reference: Any) -> Any:
    return await reference


def cause_of(error: RayTaskError) -> BaseException:
    """The SftError that a task ended with, or the task's error."""
    return error.cause if isinstance(error.cause, SftError) else error


class RayLink:
    """A DealerLink to the named dealer. The rank that keeps watch replaces a dealer that is frozen; the others do, too,
    a little later: that rank may have all that it needs."""

    def __init__(self, name: str, watch: bool, stall: float, started: float) -> None:
        """started: when the service was, by time.time."""
        self.name, self.watch, self.stall = name, watch, stall
        self._dealer = ray.get_actor(name)
        self._patience = 0.0
        self._give_it_time(since=started)

    def share(self, ask: Ask) -> Ticket:
        since: float | None = None
        while True:
            try:
                return self._patiently(self._dealer.share.remote(ask))
            except RayTaskError as error:
                raise cause_of(error) from None
            except RayError as error:
                since = since or time.monotonic()
                if time.monotonic() - since > GONE:
                    raise ClusterError(
                        f"the dealer of the data service is gone: {str(error).splitlines()[0]}",
                        where=self.name,
                        fix="look at the driver and its node; the same command resumes from the newest checkpoint",
                    ) from None
                self._give_it_time()
                time.sleep(0.2)

    def fetch(self, ticket: Ticket) -> Mapping[int, Chunk]:
        try:
            found = ray.get([reference for _, reference in ticket.chunks.values()], timeout=self.stall)
        except RayTaskError as error:
            raise cause_of(error) from None
        except (RayError, TimeoutError):
            raise ChunksLost(self._lost(ticket)) from None
        return dict(zip(ticket.chunks, found, strict=True))

    def taken(self, session: int, stream: str, rank: int, upto: int) -> None:
        self._dealer.taken.remote(session, stream, rank, upto)

    def _patiently(self, reference: Any) -> Ticket:
        """Wait as long as the dealer is alive: a step may take long to encode."""
        silences = 0
        while True:
            try:
                ticket: Ticket = ray.get(reference, timeout=self.stall)
                return ticket
            except GetTimeoutError:
                silences = 0 if self._dealer_answers() else silences + 1
                if silences >= (1 if self.watch else OTHERS) and time.monotonic() > self._patience:
                    ray.kill(self._dealer, no_restart=False)
                    self._give_it_time()

    def _dealer_answers(self) -> bool:
        try:
            ray.get(self._dealer.figures.remote(), timeout=self.stall)
            return True
        except GetTimeoutError:
            return False

    def _give_it_time(self, since: float | None = None) -> None:
        """A dealer that starts must not be taken for one that is frozen. since: when it was started; None: now."""
        had = 0.0 if since is None else time.time() - since
        self._patience = time.monotonic() + PATIENCE * self.stall - had

    def _lost(self, ticket: Ticket) -> tuple[tuple[int, int], ...]:
        """Which chunks of a ticket cannot be had; all of them if that cannot be told."""
        lost = []
        for number, (version, reference) in ticket.chunks.items():
            try:
                ray.get(reference, timeout=1.0)
            except (RayError, TimeoutError):
                lost.append((number, version))
        return tuple(lost)


@dataclass(frozen=True)
class Service:
    """The running actors.

    feeds    what they are started with, which must be there when they are started again
    started  when, by time.time
    """

    name: str
    dealer: Any
    encoders: list[Any]
    feeds: Any
    started: float

    def stop(self) -> None:
        for actor in (self.dealer, *self.encoders):
            ray.kill(actor)


def start(
    name: str,
    feeds: Mapping[str, Feed],
    packer: Packer,
    context_length: int,
    nodes: Sequence[str],
    cpus_per_encoder: float,
    resources: Mapping[str, float],
    budget: int,
    stall: float,
    ranks: int,
) -> Service:
    """Start the actors of a service under a name; returns at once.

    Args:
        context_length: most tokens of a sample.
        nodes: id of the node of each encoder; where it is lost, Ray chooses another.
        resources: what each member reserves besides, so that it runs only where that is.
        budget: bytes of encoded samples in flight.
        stall: seconds without an answer after which a member is replaced.
        ranks: that will ask at the same time.
    """
    shared = ray.put(dict(feeds))
    settings: dict[str, Any] = {"max_restarts": -1, "concurrency_groups": {"watch": 1}}
    encode = ray.remote(num_cpus=cpus_per_encoder, **settings)(EncoderActor)
    threads = max(1, math.ceil(cpus_per_encoder))
    actors = [
        encode.options(name=f"{name}-encoder-{i}", **_rather_on(node, resources)).remote([shared], threads)
        for i, node in enumerate(nodes)
    ]

    class DealerActor(StepDealer):
        def __init__(self, streams: Any) -> None:
            super().__init__(streams, packer, RayEncoders(actors, stall), context_length, budget)

    beside = _rather_on(nodes[0], resources)  # which counts only for what reserves something, be it a byte
    deal = ray.remote(num_cpus=0, memory=1, max_restarts=-1, **beside)(DealerActor)
    steps = {stream: feed.steps for stream, feed in feeds.items()}
    actor = deal.options(name=name, max_concurrency=max(1000, 8 * ranks)).remote(steps)
    return Service(name, actor, actors, shared, time.time())


def _rather_on(node: str, resources: Mapping[str, float]) -> dict[str, Any]:
    strategy = NodeAffinitySchedulingStrategy(node, soft=True)
    return {"scheduling_strategy": strategy, "resources": dict(resources)}
