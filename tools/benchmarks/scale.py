"""What does not depend on the size of a run: look-ups in a long order, late resumes, plans and deals for many ranks."""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dist_sft.data.order import Order, SampleId, Steps
from dist_sft.data.packing import Packer, StepPlan
from dist_sft.service.dealing import StepDealer
from dist_sft.service.messages import Ask, ChunkFacts
from tools.benchmarks.measure import heading, took

ROWS = 10_000_000
QWEN3_8B = 2.12e-5
"""What attention adds to the cost of a token, per token of its sample: see dist_sft.estimate.cost."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    heading()
    order()
    plans()
    asyncio.run(deals())


def order() -> None:
    """All rows of an epoch, and one step of it."""
    stream = Order.shuffled((ROWS,), seed=0).streams[0]
    blocks = [np.arange(at, min(at + (1 << 20), ROWS)) for at in range(0, ROWS, 1 << 20)]
    whole, _ = took(lambda: [stream.rows(block) for block in blocks])
    print(f"order: {ROWS:,} rows in {whole.cpu:.2f} CPU-s, without a table")
    steps = Steps.of(Order.shuffled((ROWS,), seed=0), 8, steps=None, epochs=1)
    times = {step: _median(lambda step=step: steps.samples(step)) for step in (1, 1_000_000)}
    print(f"order: samples of step 1 in {times[1] * 1e3:.2f} CPU-ms, of step 1,000,000 in {times[1_000_000] * 1e3:.2f}")


def plans() -> None:
    """Cost of the slowest rank over the mean, per micro-step; and the time of the largest plan."""
    rng = np.random.default_rng(0)
    _show("8 ranks, 1,024 chats of at most 4k, packs of 8,192", Packer(8, 8192, quadratic=QWEN3_8B), _chats(rng, 1024))
    _show("8 ranks, 2,048 chats of at most 4k, packs of 4,096", Packer(8, 4096, quadratic=QWEN3_8B), _chats(rng, 2048))
    mix = np.where(rng.random(4100) < 0.9, _chats(rng, 4100), rng.normal(12000, 2000, 4100).clip(1000, 32768)).astype(
        int
    )
    _show("64 ranks, 90 % chats and 10 % documents of 12k, packs of 32k", Packer(64, 32768, True, 4, QWEN3_8B), mix)
    _show("8,192 ranks, 16,384 chats, packs of 4,096", Packer(8192, 4096, quadratic=QWEN3_8B), _chats(rng, 16384))
    _show("the same, padded to 128", Packer(8192, 4096, True, 1, QWEN3_8B, 128), _chats(rng, 16384))


def _chats(rng: np.random.Generator, count: int) -> Any:
    return rng.lognormal(6.1, 0.7, count).clip(16, 4096).astype(int)


def _show(name: str, packer: Packer, lengths: Any) -> None:
    spent, plan = took(lambda: packer.pack(lengths.tolist()))
    assert isinstance(plan, StepPlan)
    cost = np.array(plan.cost)
    worst = float((cost.max(axis=0) / cost.mean(axis=0)).max())
    print(
        f"plan, {name}: {plan.micro_steps} micro-steps, max/mean cost {worst:.3f}, fill {plan.fill:.0%}, "
        f"{plan.dummies} dummy packs, padding {plan.padding / lengths.sum():.1%}; {spent.cpu:.3f} CPU-s"
    )


class _Encoders:
    """Answers at once."""

    capacity = 64

    async def encode(self, stream: str, begin: int, end: int) -> tuple[ChunkFacts, Any]:
        lengths = _chats(np.random.default_rng(begin), end - begin)
        ids = tuple(SampleId(position, 0, position) for position in range(begin, end))
        groups = np.zeros((len(ids), 1), np.int32)
        return ChunkFacts(
            ids, lengths, lengths.astype(float), lengths, groups, (), (), 8 * int(lengths.sum())
        ), object()


async def deals() -> None:
    """The dealer's work for a step, without the messages themselves."""
    for world, samples in ((64, 4096), (1024, 8192), (8192, 16384)):
        steps = Steps(Order.shuffled((ROWS,), seed=0), samples, samples * 100)
        dealer = StepDealer({"train": steps}, Packer(1, 4096, quadratic=QWEN3_8B), _Encoders(), 4096, 1 << 32)
        times = []
        for step in range(4):
            begin = time.process_time()
            asks = [dealer.share(Ask(1, "train", world, rank, step, step)) for rank in range(world)]
            await asyncio.gather(*asks)
            times.append(time.process_time() - begin)
        print(f"deal, {world:,} ranks, {samples:,} samples: {statistics.median(times):.2f} CPU-s a step")


def _median(call: Callable[[], Any]) -> float:
    return statistics.median(took(call)[0].cpu for _ in range(21))


if __name__ == "__main__":
    main()
