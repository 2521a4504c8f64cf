"""Each source gets its share at every prefix, wherever one starts to look."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dist_sft.core.errors import ConfigError
from dist_sft.data.mixture import RESOLUTION, Mixture, WeightChange, quotas, sample_weights

WEIGHTS = st.lists(st.integers(0, 60), min_size=1, max_size=7).filter(any)


def counts(streams, number):
    """int[n+1, K]: samples of each stream after 0, 1, ... n positions."""
    return np.vstack([np.zeros(number, int), np.cumsum(streams[:, None] == np.arange(number), axis=0)])


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 2000))
def test_after_n_samples_each_source_is_within_one_of_its_weight(weights, begin):
    mixture = Mixture.of([WeightChange(0, tuple(weights))], [None] * len(weights))
    streams, _ = mixture.locate(np.arange(begin + 500))
    ideal = np.arange(len(streams) + 1)[:, None] * np.array(weights) / sum(weights)
    assert abs(counts(streams, len(weights)) - ideal).max() < 1


@settings(deadline=None)
@given(
    WEIGHTS,
    st.lists(st.tuples(st.integers(1, 300), WEIGHTS), max_size=2),
    st.lists(st.integers(1, 40) | st.none(), min_size=7, max_size=7),
)
def test_every_visit_comes_once_and_in_order_through_changes_and_ends(weights, more, limits):
    number, limits = len(weights), limits[: len(weights)]
    changes = [WeightChange(0, tuple(weights))]
    for step, other in more:
        other = (other * number)[:number]
        if any(other):
            changes.append(WeightChange(changes[-1].position + step, tuple(other)))
    try:
        mixture = Mixture.of(changes, limits)
    except ConfigError:  # a gap, see below
        assume(False)
    end = 700 if mixture.end is None else min(mixture.end, 700)
    streams, visits = mixture.locate(np.arange(end))
    for stream, limit in enumerate(limits):
        mine = visits[streams == stream]
        assert mine.tolist() == list(range(len(mine)))
        assert limit is None or len(mine) <= limit
    assert [mixture.visits_before(n) for n in range(end + 1)] == [
        tuple(row) for row in counts(streams, number).tolist()
    ]
    alone = [mixture.locate(np.array([n])) for n in range(end)]
    assert [(int(s[0]), int(v[0])) for s, v in alone] == list(zip(streams.tolist(), visits.tolist(), strict=True))


def test_a_mixture_whose_sources_all_end_ends():
    mixture = Mixture.of([WeightChange(0, (3, 1))], [30, 5])
    assert mixture.end == 35
    assert mixture.visits_before(35) == (30, 5)
    assert Mixture.of([WeightChange(0, (3, 1))], [30, None]).end is None


def test_a_source_that_would_come_back_after_all_have_ended_is_refused():
    with pytest.raises(
        ConfigError, match=r"after 25 samples, and data.schedule goes on with others only at sample 100"
    ):
        Mixture.of([WeightChange(0, (1, 1)), WeightChange(10, (1, 0)), WeightChange(100, (0, 1))], [20, None])
    assert Mixture.of([WeightChange(0, (1, 0)), WeightChange(100, (1, 0))], [20, 5]).end == 20


def test_others_share_the_place_of_a_source_that_has_ended():
    streams, _ = Mixture.of([WeightChange(0, (2, 1, 1))], [10, None, None]).locate(np.arange(120))
    assert np.bincount(streams[20:], minlength=3).tolist() == [0, 50, 50]


def test_weights_change_at_the_position_that_is_named():
    streams, _ = Mixture.of([WeightChange(0, (1, 0)), WeightChange(50, (0, 1))], [None, None]).locate(np.arange(100))
    assert streams.tolist() == [0] * 50 + [1] * 50


def test_weights_are_read_as_they_are_written():
    assert quotas([0.7, 0.2, 0.1]) == (7, 2, 1)
    assert quotas([3, 0, 1]) == (3, 0, 1)
    assert quotas([1e-3, 0.999]) == (1, 999)
    odd = quotas([0.123456789, 2.71828182845, 3.14159265358])
    assert sum(odd) <= RESOLUTION
    assert np.allclose(
        np.array(odd) / sum(odd), np.array([0.123456789, 2.71828182845, 3.14159265358]) / 5.98333126, atol=2e-6
    )


@given(
    st.lists(st.tuples(st.floats(0.01, 0.3), st.floats(5, 5000)), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(1, 9), st.floats(5, 5000)), min_size=1, max_size=3),
)
def test_sample_weights_give_the_shares_of_tokens_that_were_asked_for(shared, weighted):
    amounts, means = (np.array(part) for part in zip(*shared, *weighted, strict=True))
    is_share = [True] * len(shared) + [False] * len(weighted)
    samples = np.array(sample_weights(amounts, is_share, means))
    tokens = samples * means / (samples * means).sum()
    for i, (share, _) in enumerate(shared):
        assert tokens[i] == pytest.approx(share, abs=1e-5 * len(means) * means.max() / (samples * means).sum() + 1e-9)
    first = samples[len(shared)] / weighted[0][0]
    for value, (weight, _) in zip(samples[len(shared) :], weighted, strict=True):
        assert value / weight == pytest.approx(first, abs=3e-5)
