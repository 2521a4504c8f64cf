"""The rows that a run is judged by: of eval.source or eval.sources, and those that eval.share keeps out of training.

files of their own ─┐
rows of training ─ HoldOut ─ Picked ─> one feed, in which each source has a name ─> losses by name
"""

from collections.abc import Iterator
from typing import NamedTuple

from dist_sft.chat.encode import Encoder
from dist_sft.config.data import Source
from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import HELD_OUT
from dist_sft.core.errors import DataError
from dist_sft.data.curriculum import Shuffled
from dist_sft.data.encoding import EncodedStep, Rows, open_sources
from dist_sft.data.groups import RowGroups
from dist_sft.data.hold_out import HoldOut
from dist_sft.data.mixture import Mixture, WeightChange
from dist_sft.data.order import Order, Steps, Stream
from dist_sft.data.sources import Picked, RowSource
from dist_sft.service.messages import Feed


class _Part(NamedTuple):
    """Rows under the name that their losses are told by."""

    name: str
    source: Source
    rows: RowSource


def held_out_feed(config: RunConfig, encoder: Encoder, train: Rows, held: HoldOut) -> Feed | None:
    """Of each name at most eval.samples rows, picked once and for all; None where there are none.

    The names take turns until each has had its rows, so that the first steps have some of all. Raises DataError.
    """
    parts = [*_given(config), *_of_training(config, train, held)]
    if not parts:
        return None
    rows = Rows([part.source for part in parts], config.data, encoder, [part.rows for part in parts])
    streams = [_stream(parts, name) for name in dict.fromkeys(part.name for part in parts)]
    limits = [min(config.eval.samples or len(stream), len(stream)) for stream in streams]
    mixture = Mixture.of([WeightChange(0, (1.0,) * len(streams))], limits)
    steps = Steps(Order(tuple(streams), mixture), config.train.samples_per_step, sum(limits))
    return Feed(rows, steps, RowGroups(rows.sources, config.tracking.group_by, [part.name for part in parts]))


def _given(config: RunConfig) -> Iterator[_Part]:
    sources = list(config.eval.given.values())
    for source, rows in zip(sources, open_sources(sources, config.data), strict=True):
        yield _Part(source.title, source, rows)


def _of_training(config: RunConfig, train: Rows, held: HoldOut) -> Iterator[_Part]:
    for source, rows, picked in zip(config.data.sources, train.sources, held.rows, strict=False):
        if len(picked):
            yield _Part(HELD_OUT, source, Picked(rows, picked))


def _stream(parts: list[_Part], name: str) -> Stream:
    """The rows of one name, shuffled together as though they were alone."""
    sources = tuple(index for index, part in enumerate(parts) if part.name == name)
    counts = tuple(len(parts[index].rows) for index in sources)
    return Stream(sources, counts, Shuffled(sum(counts), 0, 0))


def rows_by_name(feed: Feed) -> dict[str, int]:
    """How many rows of each name are scored."""
    visits = feed.steps.order.mixture.visits_before(feed.steps.positions)
    return {name: count for (_, name), count in zip(feed.groups.groups.keys, visits, strict=False)}


def probe(feed: Feed, count: int) -> EncodedStep:
    """The first rows as samples. Raises DataError where those of a name hold nothing to score."""
    looked = feed.rows.probe(feed.steps, count)
    samples = feed.steps.order.samples(0, min(count, feed.steps.positions))
    source_at = {sample.position: sample.source for sample in samples}
    scored = {id_.source for id_ in looked.ids}
    for (_, name), stream in zip(feed.groups.groups.keys, feed.steps.order.streams, strict=False):
        lost = [entry for entry in looked.entries if source_at[entry.position] in stream.sources]
        if lost and not scored.intersection(stream.sources):
            raise DataError(
                f"none of the first {len(lost)} rows of '{name}' can be scored; the first: {lost[0].what}",
                where=lost[0].where,
                fix=f"fix the rows, or leave '{name}' out of eval",
            )
    return looked
