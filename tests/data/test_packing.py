"""Dealing changes who computes a sample and when, never which samples are computed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_sft.chat.conversation import EncodedSample
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.data.packing import Packer

LENGTHS = st.lists(st.integers(1, 100), max_size=40)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 150), st.booleans(), st.integers(1, 4), st.floats(0, 0.1))
def test_every_sample_is_dealt_once_within_the_limit_and_all_ranks_run_the_same_micro_steps(
    lengths, world, limit, packing, micro_steps, quadratic
):
    plan = Packer(world, limit, packing, micro_steps, quadratic).pack(lengths)
    packs = [pack for packs in plan.packs for pack in packs]
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert len(plan.packs) == world
    assert {len(packs) for packs in plan.packs} == {plan.micro_steps}
    assert plan.micro_steps >= micro_steps
    for pack in packs:
        assert len(pack) <= 1 or (packing and sum(lengths[i] for i in pack) <= limit)


@given(LENGTHS.filter(len), st.integers(1, 4))
def test_a_deal_depends_on_lengths_alone(lengths, world):
    assert Packer(world, 120).pack(lengths) == Packer(world, 120).pack(list(lengths))


def test_as_few_micro_steps_as_the_limit_allows():
    assert Packer(world=2, tokens_per_pack=100).pack([50] * 8).micro_steps == 2
    assert Packer(world=2, tokens_per_pack=100).pack([50] * 4).micro_steps == 1
    assert Packer(world=2, tokens_per_pack=100).pack([60] * 4).micro_steps == 2


def test_packs_of_a_micro_step_cost_about_the_same():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6, 1, 512), 16, 8192).astype(int).tolist()
    packed = Packer(world=16, tokens_per_pack=16384, quadratic=2e-5).pack(lengths)
    unpacked = Packer(world=16, tokens_per_pack=16384, packing=False, quadratic=2e-5).pack(lengths)
    cost = np.array([n + 2e-5 * n * n for n in lengths]).reshape(-1, 16)  # dealt as they come
    assert packed.balance < 1.05
    assert unpacked.balance < 0.6 * cost.max(axis=1).sum() * 16 / cost.sum()


def test_a_pack_is_its_samples_side_by_side():
    ids = [SampleId(0, 0, 5), SampleId(1, 1, 2)]
    samples = [
        EncodedSample(np.array([5, 6, 7], np.int32), np.array([0, 0, 1], np.float32)),
        EncodedSample(np.array([8, 9], np.int32), np.array([0, 0.5], np.float32)),
    ]
    pack = build_pack(ids, samples)
    assert pack.tokens.tolist() == [5, 6, 7, 8, 9]
    assert pack.weights.tolist() == [0, 0, 1, 0, 0.5]
    assert pack.positions.tolist() == [0, 1, 2, 0, 1]
    assert pack.cu_seqlens.tolist() == [0, 3, 5]
    assert pack.samples == tuple(ids)


def test_a_rank_without_samples_gets_a_pack_that_teaches_nothing():
    pack = build_pack([], [])
    assert (len(pack.tokens), pack.weights.sum(), pack.real_tokens) == (1, 0, 0)


QWEN3_8B = 2.12e-5  # attention's share of the cost, see model.cost


def chats(rng, count):
    """Lengths of chats of at most 4,096 tokens, about 570 on average."""
    return np.clip(rng.lognormal(6.1, 0.7, count), 16, 4096).astype(int).tolist()


def imbalance(plan):
    """Cost of the slowest rank over the mean, by micro-step."""
    cost = np.array(plan.cost)
    return cost.max(axis=0) / cost.mean(axis=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [8192, 32768])
def test_ranks_wait_less_than_2_percent_for_each_other_on_chats(seed, limit):
    plan = Packer(8, limit, quadratic=QWEN3_8B).pack(chats(np.random.default_rng(seed), 1024))
    assert imbalance(plan).max() <= 1.02


@pytest.mark.parametrize("seed", range(3))
def test_nearly_full_packs_cost_the_same_too(seed):
    plan = Packer(8, 4096, quadratic=QWEN3_8B).pack(chats(np.random.default_rng(seed), 2048))
    assert plan.fill > 0.98 and plan.balance <= 1.01 and imbalance(plan).max() <= 1.06


@pytest.mark.parametrize("seed", range(3))
def test_ranks_wait_less_than_10_percent_where_chats_are_mixed_with_long_documents(seed):
    rng, lengths = np.random.default_rng(seed), []
    while sum(lengths) < 0.85 * 64 * 4 * 32768:
        long = rng.random() < 0.1
        lengths.append(int(np.clip(rng.normal(12000, 2000), 1000, 32768)) if long else chats(rng, 1)[0])
    plan = Packer(64, 32768, micro_steps=4, quadratic=QWEN3_8B).pack(lengths)
    assert plan.micro_steps == 4 and plan.dummies == 0
    assert imbalance(plan).max() <= 1.10


def test_sixteen_times_the_ranks_and_samples_take_sixteen_times_the_planning_and_not_its_square():
    def seconds(ranks):
        lengths, packer = chats(np.random.default_rng(0), 2 * ranks), Packer(ranks, 4096, quadratic=QWEN3_8B)
        plans, times = [], []
        for _ in range(3):
            begin = time.process_time()
            plans.append(packer.pack(lengths))
            times.append(time.process_time() - begin)
        assert sorted(i for packs in plans[0].packs for pack in packs for i in pack) == list(range(2 * ranks))
        return min(times)

    assert seconds(8192) < 4 * 16 * seconds(512)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.sampled_from([1, 2, 8, 64]))
def test_packs_are_filled_to_a_multiple_within_the_limit(lengths, world, multiple):
    limit = 128
    plan = Packer(world, limit, pad_to_multiple_of=multiple).pack(lengths)
    padding = 0
    for packs in plan.packs:
        for pack in packs:
            samples = [EncodedSample(np.ones(lengths[i], np.int32), np.zeros(lengths[i], np.float32)) for i in pack]
            built = build_pack([SampleId(i, 0, i) for i in pack], samples, multiple)
            assert len(built.tokens) % multiple == 0 and len(built.tokens) <= limit
            assert built.real_tokens == sum(lengths[i] for i in pack)
            assert built.tokens[built.real_tokens :].any() == 0 and len(built.samples) == len(pack)
            padding += len(built.tokens) - built.real_tokens if pack else 0
    assert plan.padding == padding


def test_a_step_that_is_too_small_for_its_ranks_says_what_to_change():
    small = Packer(8, 4096).pack([500] * 4)
    assert (small.dummies, small.micro_steps) == (4, 1)
    assert small.advice() == (
        "the step is small for 8 ranks: 4 of 8 packs are empty (250 tokens of 4096 each). Set train.samples_per_step "
        "to about 59, or take fewer workers, or lower train.tokens_per_pack"
    )
    assert Packer(8, 4096).pack([500] * 59).advice() is None
    assert Packer(8, 4096).pack([]).advice() is None
