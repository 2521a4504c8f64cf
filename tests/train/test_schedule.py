"""Learning rates by step."""

import pytest

from dist_sft.config.sections import TrainSection
from dist_sft.train.schedule import learning_rate


def rates(steps=10, **settings):
    section = TrainSection(steps=steps, learning_rate=1.0, **settings)
    return [learning_rate(section, step, steps) for step in range(steps)]


def test_warm_up_reaches_the_full_rate_at_its_last_update():
    assert rates(warmup=4.0, schedule="constant")[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert rates(warmup=0.4, schedule="constant")[:5] == [0.25, 0.5, 0.75, 1, 1]


def test_cosine_is_half_way_down_in_the_middle_and_ends_near_the_minimum():
    cosine = rates(steps=101, warmup=1.0, schedule="cosine", min_learning_rate=0.1)
    assert cosine[51] == pytest.approx(0.55)
    assert cosine[1] == 1
    assert 0.1 < cosine[-1] < 0.101


def test_linear_falls_by_the_same_amount_each_step():
    linear = rates(warmup=0.0, schedule="linear")
    assert linear == pytest.approx([1 - i / 10 for i in range(10)])


def test_wsd_is_constant_and_then_falls_over_its_last_share():
    assert rates(warmup=0.0, schedule="wsd", decay=0.4) == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_no_schedule_ever_asks_for_a_rate_of_zero_or_more_than_the_full_one(schedule):
    for steps in (1, 2, 3, 50):
        assert all(0 < rate <= 1 for rate in rates(steps=steps, warmup=0.1, schedule=schedule))
