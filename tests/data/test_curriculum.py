"""Orders of an epoch: each row once, easy before hard, domains mixed, no row before its time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_sft.config.data import DataSection, OrderSection, PacingSection, Source
from dist_sft.core.errors import DataError
from dist_sft.data.arrange import order_of, streams_of
from dist_sft.data.curriculum import BLOCKS, Curriculum, Pacing, Sequential


class Table:
    """Columns in memory; stands for a source, of which an order asks nothing else."""

    name = "table"

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def column(self, name):
        return self.columns.get(name, [None] * len(self))

    def where(self, i):
        return f"table:{i}"


def epoch(order, n, number=0):
    return order.rows(number, np.arange(n))


def run_order(tables, **order):
    data = DataSection(sources=tuple(Source(path=f"{i}") for i in range(len(tables))), order=OrderSection(**order))
    return order_of(data, streams_of(data, tables, seed=1), 8, lambda: pytest.fail("no token share is asked for"))


DIFFICULTY = st.lists(st.integers(0, 5), min_size=1, max_size=300)


@given(DIFFICULTY, st.booleans(), st.booleans())
def test_each_row_comes_once_per_epoch(difficulty, domains, paced):
    n = len(difficulty)
    order = Curriculum(
        np.array(difficulty, float), np.arange(n) % 3 if domains else None, Pacing(0.2, 0.8, 1) if paced else None, 0, 0
    )
    assert sorted(epoch(order, n)) == sorted(epoch(order, n, 1)) == list(range(n))


@given(DIFFICULTY)
def test_stages_come_easy_to_hard_and_are_shuffled_inside(difficulty):
    values = np.array(difficulty * 20, float)
    order = Curriculum(values, None, None, 0, 0)
    first, second = epoch(order, len(values)), epoch(order, len(values), 1)
    assert (np.diff(values[first]) >= 0).all() and (np.diff(values[second]) >= 0).all()
    assert len(values) < 40 or first.tolist() != second.tolist()


def test_domains_stay_mixed_while_difficulty_rises():
    rng = np.random.default_rng(0)
    domain = rng.choice(3, 3000, p=[0.7, 0.25, 0.05])
    difficulty = rng.normal(size=3000) + 10 * domain  # one domain is harder than another throughout
    rows = epoch(Curriculum(difficulty, domain, None, 0, 0), 3000)
    for number in range(3):
        mine = difficulty[rows[domain[rows] == number]]
        assert (np.diff(mine) >= 0).all()
        seen = np.cumsum(domain[rows] == number)
        assert abs(seen - np.arange(1, 3001) * seen[-1] / 3000).max() <= 2


def test_no_row_is_drawn_before_pacing_opens_it():
    pacing, n = Pacing(0.4, 0.8, 1), 5000
    rows = epoch(Curriculum(np.arange(n, dtype=float), None, pacing, 0, 0), n)
    for block in range(BLOCKS):
        begin, end = n * block // BLOCKS, n * (block + 1) // BLOCKS
        assert rows[begin:end].max() < max(end, np.ceil(pacing.available(begin / n) * n))
    quarter = rows[: n // 4]
    assert 0.5 * n < quarter.max()  # more than the first quarter in order: it is a draw
    assert abs(np.corrcoef(quarter, np.arange(len(quarter)))[0, 1]) < 0.5


def test_a_sequential_order_is_that_of_the_file():
    order = run_order([Table(x=[0] * 5), Table(x=[0] * 3)], kind="sequential")
    assert [(s.source, s.row) for s in order.samples(0, 9)] == [
        *((0, i) for i in range(5)),
        *((1, i) for i in range(3)),
        (0, 0),
    ]


def test_names_of_stages_are_ordered_as_they_are_listed():
    order = run_order(
        [Table(stage=["hard", "easy", "mid", "easy"])], kind="staged", by="stage", stages=("easy", "mid", "hard")
    )
    assert [s.row for s in order.samples(0, 4)] in ([1, 3, 2, 0], [3, 1, 2, 0])


@pytest.mark.parametrize("bad", [None, "strange", True, float("nan")])
def test_a_row_without_a_difficulty_is_named(bad):
    with pytest.raises(DataError, match="table:1"):
        run_order([Table(difficulty=[1, bad, 3])], kind="staged")


def test_sources_are_the_domains_where_none_is_named():
    tables = [Table(difficulty=list(range(90))), Table(difficulty=list(range(1000, 1010)))]
    order = run_order(tables, kind="interleaved", pacing=PacingSection(start=0.5))
    half = [s.source for s in order.samples(0, 50)]
    assert 2 <= sum(half) <= 8
    strict = [s.source for s in run_order(tables, kind="interleaved").samples(0, 50)]
    assert sum(strict) == 5


def test_a_sequential_order_repeats():
    assert Sequential().rows(3, np.array([2, 0])).tolist() == [2, 0]
