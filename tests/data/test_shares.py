"""A share of tokens that was asked for is the share that the model sees."""

import json
import random
import time
import tracemalloc

import numpy as np
import pytest

from dist_sft.chat.encode import Encoder
from dist_sft.config.data import DataSection, LossWeights, Source
from dist_sft.core.errors import DataError
from dist_sft.data.arrange import order_of, streams_of
from dist_sft.data.encoding import Rows
from dist_sft.data.order import Order, Steps
from tests.service import chats

CONTEXT = 4096


def chat(dice):
    words = "word " * max(1, int(dice.lognormvariate(3, 0.7)))
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": words + "."}]}


def document(dice):
    return {"text": "page " * max(1, int(dice.lognormvariate(4.5, 0.9)))}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Chats, and documents that are about four times as long."""
    folder, dice = tmp_path_factory.mktemp("shares"), random.Random(0)
    for name, make, count in (("chats", chat, 3000), ("replay", document, 2500), ("more", chat, 500)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(make(dice)) + "\n" for _ in range(count)))
    return folder


def tokens_by_source(sources, steps, per_step, seed=0, context=CONTEXT):
    """int[steps, sources]: tokens of each source in each step."""
    data = DataSection(sources=sources, cache=None, context_length=context)
    rows = Rows(data.sources, data, Encoder(chats.vocabulary(), "chatml", LossWeights(), context, "drop"))
    streams = streams_of(data, rows.sources, seed)
    order = order_of(data, streams, per_step, lambda: rows.first_lengths(streams))
    found = np.zeros((steps, len(sources)), int)
    for step in range(steps):
        encoded = rows.encode(step, Steps.of(order, per_step, steps, None).samples(step))
        for id_, sample in zip(encoded.ids, encoded.samples, strict=True):
            found[step, id_.source] += len(sample)
    return found


@pytest.mark.parametrize("share", [0.05, 0.1])
def test_replay_has_its_share_of_tokens_within_half_a_point_after_200_steps(files, share):
    sources = (
        Source(path=str(files / "chats.jsonl"), weight=3),
        Source(path=str(files / "replay.jsonl"), format="text", token_share=share),
        Source(path=str(files / "more.jsonl"), weight=1),
    )
    tokens = tokens_by_source(sources, 200, 32).sum(axis=0)
    assert tokens[1] / tokens.sum() == pytest.approx(share, abs=0.005)


def test_rows_that_are_dropped_do_not_shrink_a_share(files):
    """Of the documents, a fifth is too long for this context: the others come more often."""
    sources = (
        Source(path=str(files / "chats.jsonl"), weight=1),
        Source(path=str(files / "replay.jsonl"), format="text", token_share=0.2),
    )
    tokens = tokens_by_source(sources, 200, 32, context=800).sum(axis=0)
    assert tokens[1] / tokens.sum() == pytest.approx(0.2, abs=0.005)


def test_a_share_of_a_source_that_cannot_be_learned_is_refused(files, tmp_path):
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": " "}) + "\n")
    sources = (
        Source(path=str(files / "chats.jsonl"), weight=1),
        Source(path=str(tmp_path / "empty.jsonl"), format="text", token_share=0.2),
    )
    with pytest.raises(DataError, match="none of its first 1 rows can be learned, so its share of tokens"):
        tokens_by_source(sources, 1, 4)


def test_an_order_of_10_million_rows_needs_no_table():
    order = Order.shuffled((10_000_000,), seed=1)
    tracemalloc.start()
    begin = time.process_time()
    sampled = [order.samples(position, position + 64) for position in range(0, 10_000_000, 1_000_000)]
    took, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    assert took / 10 < 0.1
    assert len({id_.row for part in sampled for id_ in part}) == 640
    begin, seen = time.process_time(), np.zeros(10_000_000, bool)
    stream = order.streams[0]
    for first in range(0, 10_000_000, 1 << 20):
        _, rows = stream.rows(np.arange(first, min(first + (1 << 20), 10_000_000)))
        seen[rows] = True
    took = time.process_time() - begin
    assert seen.all()
    assert took < 6  # tools/bench order: under 3 where nobody else uses the core
