"""Every step reaches the ranks as the oracle says, whoever dawdles, dies or comes back in another number."""

import asyncio
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.data import WeightChange
from dist_sft.core.errors import ClusterError, ConfigError, DataError, RowError
from dist_sft.data.encoding import EncodedStep, Layout, step_hash
from dist_sft.data.ledger import Ledger
from dist_sft.data.order import Order, SampleId, Steps
from dist_sft.data.pack import build_pack
from dist_sft.data.packing import Packer
from dist_sft.service.client import StepClient
from dist_sft.service.local import LocalLink
from dist_sft.service.messages import Ask, Feed
from tests.service import chats, oracle
from tests.service.members import Cluster, on_ranks

STEPS = 14  # two epochs
ANY = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return chats.write(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module", params=[None, [5, 2, 1]], ids=["together", "weights"])
def truth(request, files, tmp_path_factory):
    """The weights, the feed, and the hash of each step as another process works it out."""
    weights = request.param
    run = tmp_path_factory.mktemp("run") / "run.json"
    run.write_text(json.dumps(chats.described(files, STEPS, weights)))
    oracle = Path(__file__).with_name("oracle.py")
    out = subprocess.run([sys.executable, oracle, run], capture_output=True, text=True, check=True).stdout.split()
    return weights, chats.feed(files, STEPS, weights), out


def hashes(delivered):
    return [digest for _, (digest, _) in sorted(delivered.items())]


def test_the_hashes_are_those_that_were_committed(truth):
    weights, _, expected = truth
    golden = json.loads(Path(__file__).with_name("golden.json").read_text())
    assert expected == golden["weights" if weights else "together"]


@pytest.mark.xdist_group("delivery")
@ANY
@given(
    st.integers(1, 16), st.integers(0, 4), st.integers(1, 8), st.integers(0, 2**32), st.floats(0, 0.5),
    st.floats(0, 0.3), st.sets(st.integers(1, 60), max_size=3), st.sampled_from([1 << 14, 1 << 16, 1 << 24]),
    st.sampled_from([120, 250, 1111]),
)  # fmt: skip
def test_every_step_is_the_oracles(truth, world, encoders, prefetch, seed, deaths, losses, kills, budget, limit):
    _, feed, expected = truth
    dealer = Packer(1, limit, quadratic=1e-3)
    if encoders == 0:  # each rank for itself
        parts = []
        for rank in range(world):
            link = LocalLink({"train": feed}, Packer(world, limit, quadratic=1e-3), chats.CONTEXT, budget)
            parts.append(list(StepClient(link, "train", STEPS, 1, world, rank, prefetch, Ledger(), 1.0).shares(0)))
            link.close()
    else:
        cluster = Cluster({"train": feed}, encoders, random.Random(seed), deaths, losses, budget, dealer=dealer)
        cluster.kill_at = kills
        parts = cluster.run(STEPS, world, prefetch=prefetch)
        cluster.close()
    assert hashes(chats.delivered(parts)) == expected


@ANY
@given(st.lists(st.tuples(st.integers(0, STEPS), st.integers(1, 5)), min_size=1, max_size=5), st.integers(0, 2**32))
def test_each_row_once_per_epoch_through_crashes_and_changes_of_world(truth, attempts, seed):
    """A start of the ranks for each attempt: it goes on where the last one's checkpoint was."""
    _, feed, expected = truth
    cluster = Cluster({"train": feed}, 2, random.Random(seed), deaths=0.2)
    path, done, seen, crashed = None, 0, {}, Ledger()
    for session, (stop, world) in enumerate([*sorted(attempts), (STEPS, 2)]):
        ledger = Ledger(path, [entry for entry in crashed.entries if entry.step < done])
        seen |= chats.delivered(cluster.run(STEPS, world, done, max(done, stop), session=session, ledger=ledger))
        crashed, done = ledger, max(done, stop)
    cluster.close()
    assert hashes(seen) == expected
    learned = sorted(id_.position for _, ids in seen.values() for id_ in ids)
    listed = [entry.position for entry in ledger.entries]
    assert sorted([*learned, *listed]) == list(range(STEPS * chats.PER_STEP))
    if truth[0] is None:
        rows = [feed.steps.order.samples(position, position + 1)[0] for position in range(140)]
        first = {(id_.source, id_.row) for id_ in rows[:70]}
        assert first == {(id_.source, id_.row) for id_ in rows[70:]}
        assert len(first) == 70


def test_resuming_opens_only_the_samples_of_the_steps_that_are_served(truth):
    _, feed, expected = truth
    cluster = Cluster({"train": feed}, 2)
    parts = cluster.run(STEPS, 2, start=9, stop=12, prefetch=1)
    cluster.close()
    opened = sorted(position for _, begin, end in cluster.encoders.opened for position in range(begin, end))
    assert opened == list(range(90, 120))
    assert hashes(chats.delivered(parts)) == expected[9:12]


def figures(cluster):
    return asyncio.run_coroutine_threadsafe(cluster.dealer.figures(), cluster.loop).result(10)


def settled(look, seconds=0.7):
    """What `look` says once it has said the same for so long."""
    value, since = look(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.02)
        if (now := look()) != value:
            value, since = now, time.monotonic()
    return value


def test_a_rank_that_stands_still_stops_the_encoders_at_the_budget_and_misses_nothing(truth):
    _, feed, expected = truth
    budget = 2 * chats.PER_STEP * chats.CONTEXT * 8
    cluster = Cluster({"train": feed}, 4, budget=budget)
    slow, quick = cluster.client(STEPS, 2, 1, prefetch=1).shares(0), []
    standing = [next(slow)]
    ahead = threading.Thread(
        target=lambda: quick.extend(cluster.client(STEPS, 2, 0, prefetch=8).shares(0)), daemon=True
    )
    ahead.start()
    settled(lambda: figures(cluster)["encoded_chunks"])
    encoded = sum(end - begin for _, begin, end in cluster.encoders.opened)
    assert encoded < STEPS * chats.PER_STEP, "nothing held the encoders back"
    assert 0 < figures(cluster)["in_flight"] <= figures(cluster)["peak"] <= budget
    parts = [quick, standing + list(slow)]
    ahead.join(30)
    assert hashes(chats.delivered(parts)) == expected
    assert figures(cluster)["peak"] <= budget
    assert settled(lambda: figures(cluster)["in_flight"]) == 0
    assert figures(cluster)["steps"] == 0
    cluster.close()


@pytest.mark.parametrize("budget", [10_500, 20_000, 40_000])
def test_encoders_far_faster_than_the_ranks_stay_within_the_budget(truth, budget):
    _, feed, expected = truth
    cluster = Cluster({"train": feed}, 4, budget=budget)

    def slowly(rank):
        taken = []
        for share in cluster.client(STEPS, 3, rank, prefetch=8).shares(0):
            taken.append(share)
            time.sleep(0.02)
        return taken

    parts = on_ranks(3, slowly)
    assert hashes(chats.delivered(parts)) == expected
    assert figures(cluster)["peak"] <= budget
    cluster.close()


def test_a_step_larger_than_the_budget_is_refused_with_the_setting_to_raise(truth):
    cluster = Cluster({"train": truth[1]}, 1, budget=2500)
    with pytest.raises(
        ConfigError, match=r"step 1 does not fit into service.budget=2500 bytes\n  fix: set service.budget to"
    ):
        cluster.run(STEPS, 2)
    cluster.close()


def test_a_rank_of_an_earlier_start_is_sent_away(truth):
    cluster = Cluster({"train": truth[1]}, 1)
    old = cluster.client(STEPS, 2, 0, prefetch=1, session=1).shares(0)
    next(old)
    newer = cluster.client(STEPS, 3, 0, prefetch=1, session=2).shares(4)
    next(newer)
    with pytest.raises(ClusterError, match="a later start has taken over"):
        list(old)
    with pytest.raises(ClusterError, match="a later start has taken over"):
        cluster.share(Ask(1, "train", 2, 0, 8, 8))
    cluster.close()


def test_a_later_start_frees_what_all_streams_of_the_one_before_it_hold(files):
    """Or held-out rows would wait for ever for the bytes of training steps that nobody takes."""
    feeds = {"train": chats.feed(files, STEPS), "held_out": chats.feed(files, STEPS)}
    cluster = Cluster(feeds, 2, budget=int(2.3 * chats.PER_STEP * (chats.CONTEXT * 8 + 16)))
    ahead = [cluster.client(STEPS, 2, rank, prefetch=4).shares(0) for rank in range(2)]
    for shares in ahead:
        next(shares)
    settled(lambda: figures(cluster)["encoded_chunks"])
    parts = on_ranks(
        2, lambda rank: list(cluster.client(STEPS, 2, rank, session=2, stream="held_out").shares(0)), seconds=30
    )
    assert [len(part) for part in parts] == [STEPS, STEPS]
    assert figures(cluster)["peak"] <= cluster.dealer.budget
    cluster.close()


def test_a_rank_that_stops_early_leaves_no_question_open(truth):
    before = set(threading.enumerate())
    cluster = Cluster({"train": truth[1]}, 1)
    shares = cluster.client(STEPS, 2, 0, prefetch=4).shares(0)
    next(shares)
    shares.close()
    cluster.client(STEPS, 2, 1, prefetch=1).link.taken(1, "train", 1, STEPS)
    assert settled(lambda: figures(cluster)["steps"]) == 0
    assert settled(lambda: {thread.name for thread in set(threading.enumerate()) - before}) == {cluster.thread.name}
    cluster.close()


def test_a_bad_row_ends_the_run_under_its_own_name(files):
    feed = chats.feed(files, 7)
    feed.rows.data = feed.rows.data.model_copy(update={"bad_rows": "error"})
    cluster = Cluster({"train": feed}, 2)
    with pytest.raises(RowError, match=r"part-\d.jsonl:\d+"):
        cluster.run(7, 2)
    cluster.close()


class LengthTable:
    """Rows of which only the lengths are known; stands for `Rows`. opened: how many were asked for."""

    def __init__(self, count):
        self.lengths, self.opened = np.random.default_rng(0).integers(1, 100, count, dtype=np.int32), 0

    def encode(self, step, ids):
        self.opened += len(ids)
        lengths = self.lengths[[id_.row for id_ in ids]].tolist()
        samples = tuple(EncodedSample(np.zeros(n, np.int32), np.zeros(n, np.float32)) for n in lengths)
        return EncodedStep(step, tuple(ids), samples, ())


def test_resuming_late_costs_what_resuming_early_costs():
    rows = LengthTable(10_000_000)
    feed = Feed(rows, Steps.of(Order.shuffled((10_000_000,), 0), 8, steps=None, epochs=1))

    def first_share(step):
        rows.opened, begin = 0, time.process_time()
        cluster = Cluster({"train": feed}, 2)
        (share,) = cluster.run(len(feed.steps), 1, step, step + 1, prefetch=1)[0]
        took = time.process_time() - begin
        cluster.close()
        assert (share.step, share.totals.samples, rows.opened) == (step, 8, 8)
        return took

    early, late = ([first_share(step) for _ in range(7)] for step in (1, 1_000_000))
    assert max(statistics.median(early), statistics.median(late)) < 0.5
    assert statistics.median(late) < 2 * statistics.median(early) + 0.005


def test_weights_that_change_at_a_step_are_resumed_exactly_before_and_after_it(files):
    weights, later = [5, 2, 1], WeightChange(step=6, weights=(1, 1, 0))
    feed = chats.feed(files, STEPS, weights, schedule=(later,))
    sources = [[id_.source for id_ in feed.steps.samples(step)] for step in range(STEPS)]
    assert [sorted(step).count(2) for step in sources[6:]] == [0] * 8
    assert [sum(step.count(0) for step in part) for part in (sources[:6], sources[6:])] == [38, 40]
    cluster = Cluster({"train": feed}, 2)
    whole = hashes(chats.delivered(cluster.run(STEPS, 3)))
    for session, start in enumerate((4, 5, 6, 7, 9), 2):
        assert hashes(chats.delivered(cluster.run(STEPS, 2, start, session=session))) == whole[start:]
    cluster.close()


def test_a_source_may_come_in_later(files):
    feed = chats.feed(files, STEPS, [1, 0, 1], schedule=(WeightChange(step=4, weights=(1, 2, 1)),))
    counts = [sum(id_.source == 1 for id_ in feed.steps.samples(step)) for step in range(STEPS)]
    assert counts == [0] * 4 + [5] * 10


def test_the_order_in_which_files_were_written_or_are_found_changes_nothing(files, tmp_path, monkeypatch):
    """A folder is one source; whatever the file system lists first, its files are taken in natural order."""
    seen = set()
    for number, order in enumerate(itertools.permutations(files)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in order:
            shutil.copy(file, folder / file.name)
        listed = [folder / file.name for file in order]
        monkeypatch.setattr(Path, "rglob", lambda self, pattern, listed=listed: iter(listed))
        feed = chats.feed([folder], STEPS)
        seen.add(tuple(step_hash(feed.encode(*feed.steps.positions_of(step))) for step in range(STEPS)))
    assert len(seen) == 1


def test_too_many_bad_rows_stop_the_run_and_long_ones_do_not(files, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = chats.line(0, 0)
    path.write_text("".join(("{" if row % 5 == 0 else good) + "\n" for row in range(300)))
    feed = chats.feed([path], 30)
    cluster = Cluster({"train": feed}, 2)
    client = StepClient(cluster, "train", 30, 1, 1, 0, 2, Ledger(tmp_path / "ledger.jsonl"), max_bad_share=0.1)
    seen = []
    with pytest.raises(
        DataError, match=r"\d+ of the first 100 rows are bad, .*\n  fix: mend the rows that ledger.jsonl lists"
    ):
        seen.extend(client.shares(0))
    cluster.close()
    assert len(seen) == 9
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == sum(
        id_.row % 5 == 0 for step in range(10) for id_ in feed.steps.samples(step)
    )


def test_damaged_shards_of_the_store_are_made_anew_and_a_person_is_told(truth, files, tmp_path):
    weights, _, expected = truth
    notes = []
    for damage in (lambda content: content[: len(content) // 2], lambda content: content[:90] + b"?" + content[91:]):
        feed = chats.feed(files, STEPS, weights, cache=tmp_path)
        (one,) = Cluster({"train": feed}, 1).run(STEPS, 1)
        feed.rows.stores[Layout("messages")].close()
        assert hashes(chats.delivered([one])) == expected
        for path in tmp_path.glob("tokens/*/*.tokens"):
            path.write_bytes(damage(path.read_bytes()))
        feed = chats.feed(files, STEPS, weights, cache=tmp_path)
        notes.clear()
        cluster = Cluster({"train": feed}, 1)
        client = StepClient(cluster, "train", STEPS, 1, 1, 0, 2, Ledger(), 1.0, lambda step, text: notes.append(text))
        assert hashes(chats.delivered([list(client.shares(0))])) == expected
        assert feed.rows.encoded > 0
        assert any(".tokens: " in note for note in notes), notes
        feed.rows.stores[Layout("messages")].close()


class TestTraps:
    """Where others lose or repeat rows."""

    def resumed(self, feed, expected, start, world=2, before=3):
        cluster = Cluster({"train": feed}, 2)
        first = chats.delivered(cluster.run(len(expected), before, 0, start, session=1))
        rest = chats.delivered(cluster.run(len(expected), world, start, session=2))
        cluster.close()
        assert hashes(first) + hashes(rest) == expected

    def test_resuming_exactly_at_the_end_of_an_epoch(self, truth):
        self.resumed(truth[1], truth[2], 7)

    def test_saving_right_after_restoring(self, truth):
        cluster = Cluster({"train": truth[1]}, 2)
        for session in (1, 2, 3):  # a start that takes nothing
            cluster.run(STEPS, 2, 5, 5, session=session)
        assert hashes(chats.delivered(cluster.run(STEPS, 2, 5, session=4))) == truth[2][5:]
        cluster.close()

    def test_fewer_ranks_at_resume(self, truth):
        self.resumed(truth[1], truth[2], 6, world=1, before=8)

    @pytest.mark.parametrize("world", [3, 7, 11])
    def test_a_world_size_that_does_not_divide_the_step(self, truth, world):
        self.resumed(truth[1], truth[2], 5, world=world, before=world)

    @pytest.mark.parametrize("limit", [121, 333, 1000])
    def test_a_token_limit_that_is_no_power_of_two(self, truth, limit):
        cluster = Cluster({"train": truth[1]}, 2, dealer=Packer(1, limit))
        parts = cluster.run(STEPS, 3)
        cluster.close()
        assert max(len(pack.tokens) for shares in parts for share in shares for pack in share.packs) <= limit
        assert hashes(chats.delivered(parts)) == truth[2]

    def test_a_source_shorter_than_one_step(self, tmp_path):
        files = chats.write(tmp_path, (3, 2))
        run = chats.described(files, 4)
        expected = oracle.hashes(run)
        assert hashes(chats.delivered(Cluster({"train": chats.feed(files, 4)}, 1).run(4, 2))) == expected

    def test_two_sources_with_equal_rows(self, tmp_path):
        files = chats.write(tmp_path, (12,)) * 2
        feed = chats.feed(files, None, epochs=1.0, cache=tmp_path / "cache")
        seen = chats.delivered(Cluster({"train": feed}, 2).run(len(feed.steps), 2))
        taught = sorted((id_.source, id_.row) for _, ids in seen.values() for id_ in ids)
        assert [row for source, row in taught if source == 0] == [row for source, row in taught if source == 1]
        assert hashes(seen)[:2] == oracle.hashes(chats.described(files, 2))

    def test_a_sample_of_one_token_and_one_of_exactly_the_limit(self, tmp_path):
        shell = len("user\n?") + len("assistant\n") + 2 * 3
        exact, over = "x" * (chats.CONTEXT - shell), "x" * (chats.CONTEXT - shell + 1)
        rows = [
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}] for text in (exact, over, "")
        ]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
        ledger, cluster = (
            Ledger(),
            Cluster({"train": chats.feed([path], 1, per_step=3)}, 1, dealer=Packer(1, chats.CONTEXT)),
        )
        ((share,),) = cluster.run(1, 1, ledger=ledger)
        assert [len(pack.tokens) for pack in share.packs if pack.samples] == [chats.CONTEXT]
        assert sorted((entry.where[-2:], entry.reason) for entry in ledger.entries) == [
            (":2", "overlong"),
            (":3", "empty_answer"),
        ]
        one = EncodedSample(np.array([5], np.int32), np.zeros(1, np.float32))
        assert build_pack([SampleId(0, 0, 0)], [one]).cu_seqlens.tolist() == [0, 1]
        cluster.close()
