"""Randomness is a function of (seed, purpose, counters)."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_sft.core import seeds


def test_splitmix64_is_the_published_one():
    # first outputs of splitmix64 seeded with 0, as in the reference implementation and in Java's SplittableRandom
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(int(v)) for v in seeds.mix64(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_keys_never_change():
    assert seeds.key(0, "order", 0) == seeds.key(0, "order", 0)
    assert len({seeds.key(s, p, c) for s in range(5) for p in ("order", "noise") for c in range(5)}) == 50
    assert seeds.key(7, "order", 3) == 6494022281158524758


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_holds_every_row_once(n, key):
    assert sorted(seeds.permute(np.arange(n), n, key)) == list(range(n))


def test_a_permutation_never_changes():
    order = seeds.permute(np.arange(1000), 1000, seeds.key(0, "order", 0))
    large = seeds.permute(np.array([0, 1, 5_000_000, 9_999_999]), 10_000_000, seeds.key(0, "order", 0))
    assert (order[:6].tolist(), large.tolist()) == ([741, 896, 823, 62, 465, 542], [8565455, 414704, 8831762, 6238921])
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


@given(st.integers(1, 10**12), st.lists(st.integers(0, 10**12), max_size=5), st.integers(0, 2**64 - 1))
def test_a_look_up_needs_no_other(n, indices, key):
    indices = np.array([index % n for index in indices], np.int64)
    assert seeds.permute(indices, n, key).tolist() == [
        int(seeds.permute(indices[i : i + 1], n, key)[0]) for i in range(len(indices))
    ]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_few_rows_are_equally_likely(n):
    draws = 6000
    seen = Counter(tuple(seeds.permute(np.arange(n), n, seeds.key(draw, "order")).tolist()) for draw in range(draws))
    orders = list(itertools.permutations(range(n)))
    expected = draws / len(orders)
    chi_square = sum((seen[order] - expected) ** 2 / expected for order in orders)
    assert chi_square < 1.6 * len(orders) + 6  # about 5 standard deviations for 120 orders, more for fewer


def test_each_row_comes_as_often_early_as_late():
    n, draws = 100, 2000
    early = sum(
        np.bincount(seeds.permute(np.arange(n // 2), n, seeds.key(draw, "order")), minlength=n) for draw in range(draws)
    )
    assert abs(early - draws / 2).max() < 5 * (draws / 4) ** 0.5
