"""Ranks that share a pack are dealt the same packs, each in its own time, by one service."""

import random

import numpy as np
import pytest

from dist_sft.data.packing import Packer
from tests.service import chats
from tests.service.members import Cluster

STEPS = 7


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    return chats.feed(chats.write(tmp_path_factory.mktemp("chats")), STEPS)


def delivered(feed, world, ranks_per_pack, seed=0):
    dealer = Packer(1, 360, pad_to_multiple_of=ranks_per_pack, ranks_per_pack=ranks_per_pack)
    cluster = Cluster({"train": feed}, 2, random.Random(seed), deaths=0.2, losses=0.1, dealer=dealer)
    cluster.kill_at = {5, 11}
    parts = cluster.run(STEPS, world)
    cluster.close()
    return parts


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_get_the_same_packs_and_groups_different_ones(feed, seed):
    parts, alone = delivered(feed, 6, 2, seed), delivered(feed, 3, 1, seed)
    for one, other in zip(parts[::2], parts[1::2], strict=True):
        for share, same in zip(one, other, strict=True):
            assert share.step == same.step and len(share.packs) == len(same.packs)
            for pack, twin in zip(share.packs, same.packs, strict=True):
                assert np.array_equal(pack.tokens, twin.tokens) and pack.samples == twin.samples
                assert len(pack.tokens) % 2 == 0
    hashes = [digest for digest, _ in chats.delivered(parts[::2]).values()]
    assert hashes == [digest for digest, _ in chats.delivered(alone).values()]


def test_a_plan_is_for_groups_of_ranks():
    plan = Packer(8, 100, ranks_per_pack=4, pad_to_multiple_of=4).pack([30, 70, 20, 50])
    assert len(plan.packs) == 2 and sorted(i for packs in plan.packs for pack in packs for i in pack) == [0, 1, 2, 3]
