"""Dealing changes who computes a sample and when, never which samples are computed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_sft.chat.conversation import EncodedSample
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.data.packing import Dealer

LENGTHS = st.lists(st.integers(1, 100), max_size=40)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 150), st.booleans(), st.integers(1, 4), st.floats(0, 0.1))
def test_every_sample_is_dealt_once_within_the_limit_and_all_ranks_run_the_same_micro_steps(
    lengths, world, limit, packing, micro_steps, quadratic
):
    plan = Dealer(world, limit, packing, micro_steps, quadratic).deal(lengths)
    packs = [pack for packs in plan.packs for pack in packs]
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert len(plan.packs) == world
    assert {len(packs) for packs in plan.packs} == {plan.micro_steps}
    assert plan.micro_steps >= micro_steps
    for pack in packs:
        assert len(pack) <= 1 or (packing and sum(lengths[i] for i in pack) <= limit)


@given(LENGTHS.filter(len), st.integers(1, 4))
def test_a_deal_depends_on_lengths_alone(lengths, world):
    assert Dealer(world, 120).deal(lengths) == Dealer(world, 120).deal(list(lengths))


def test_as_few_micro_steps_as_the_limit_allows():
    assert Dealer(world=2, tokens_per_pack=100).deal([50] * 8).micro_steps == 2
    assert Dealer(world=2, tokens_per_pack=100).deal([50] * 4).micro_steps == 1
    assert Dealer(world=2, tokens_per_pack=100).deal([60] * 4).micro_steps == 2


def test_packs_of_a_micro_step_cost_about_the_same():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6, 1, 512), 16, 8192).astype(int).tolist()
    packed = Dealer(world=16, tokens_per_pack=16384, quadratic=2e-5).deal(lengths)
    unpacked = Dealer(world=16, tokens_per_pack=16384, packing=False, quadratic=2e-5).deal(lengths)
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
