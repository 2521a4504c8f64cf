"""samples(step) is closed-form: no state, no rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_sft.data.order import Order, Steps


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(0, 5), st.integers(1, 7))
def test_each_epoch_holds_every_row_of_every_source_once(rows, seed, per_step):
    steps = Steps.of(Order.shuffled(rows, seed), per_step, steps=None, epochs=2)
    seen = [sample for step in range(len(steps)) for sample in steps.samples(step)]
    every_row = sorted((source, row) for source, count in enumerate(rows) for row in range(count))
    half = len(every_row)
    assert [sample.position for sample in seen] == list(range(2 * half))
    assert sorted((s.source, s.row) for s in seen[:half]) == every_row
    assert sorted((s.source, s.row) for s in seen[half:]) == every_row


def test_epochs_and_seeds_have_different_orders():
    def rows(seed, epoch):
        return [sample.row for sample in Order.shuffled((50, 50), seed).samples(epoch * 100, epoch * 100 + 100)]

    assert len({tuple(rows(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(("steps", "epochs", "expected"), [(7, None, 7), (None, 1, 3), (None, 2, 5), (None, 0.5, 2)])
def test_a_run_has_as_many_steps_as_asked_for(steps, epochs, expected):
    assert len(Steps.of(Order.shuffled([10], 0), 4, steps, epochs)) == expected


def test_the_last_step_of_a_run_by_epochs_holds_what_is_left():
    steps = Steps.of(Order.shuffled([10], 0), 4, steps=None, epochs=1)
    assert [len(steps.samples(step)) for step in range(3)] == [4, 4, 2]
