"""Which groups rows are in."""

import json

import numpy as np
import pytest

from dist_sft.config.data import Source
from dist_sft.core.errors import DataError
from dist_sft.core.results import GroupLoss
from dist_sft.data.groups import LONGEST, MOST, Groups, GroupTotals, RowGroups, added, refuse_unknown, totals_of
from dist_sft.data.order import SampleId
from dist_sft.data.sources import open_source


@pytest.fixture
def sources(tmp_path):
    """A function: lists of rows -> opened JSON Lines files a.jsonl, b.jsonl, ... of them."""

    def opened(*rows):
        found = []
        for name, part in zip("abc", rows, strict=False):
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
            found.append(open_source(Source(path=str(path))))
        return found

    return opened


def names(groups, by):
    return [name for found, name in groups.groups.keys if found == by]


def test_without_a_column_there_is_one_group_for_each_source(sources):
    groups = RowGroups(sources([{"text": "x"}], [{"text": "y"}]), None)
    assert [name.rpartition("/")[2] for name in names(groups, "source")] == ["a.jsonl", "b.jsonl"]
    assert groups.ids([SampleId(0, 1, 0), SampleId(1, 0, 0)]).tolist() == [[1], [0]]
    assert RowGroups().ids([SampleId(0, 0, 0)]).shape == (1, 0)


def test_a_value_is_one_group_in_all_sources_and_null_is_one(sources):
    """Ids of sources come first, then none, then the values from the most frequent one on."""
    rows = [{"tag": "math"}, {"tag": None}, {}, {"tag": " "}], [{"tag": "code"}, {"tag": "code"}, {"tag": 3}]
    groups = RowGroups(sources(*rows), "tag")
    assert names(groups, "tag") == ["none", "code", "3", "math"]
    ids = groups.ids([SampleId(i, source, row) for i, (source, row) in enumerate([(0, 0), (0, 2), (1, 1), (1, 2)])])
    assert ids.tolist() == [[0, 5], [0, 2], [1, 3], [1, 4]]


def test_the_rarest_of_many_values_are_counted_as_other(sources):
    rows = [{"tag": f"{i:03}"} for i in range(100) for _ in range(2)] + [{"tag": "099"}, {"tag": None}]
    groups = RowGroups(sources(rows), "tag")
    kept = names(groups, "tag")
    assert kept == ["none", "099", *(f"{i:03}" for i in range(MOST - 3)), "other"]
    assert len(kept) == MOST
    values = [groups.groups.keys[id_][1] for id_ in groups.ids([SampleId(i, 0, i) for i in range(202)])[:, 1]]
    assert values == [row["tag"] if row["tag"] in kept else "none" if row["tag"] is None else "other" for row in rows]


def test_rows_that_say_other_are_counted_with_the_others(sources):
    rows = [{"tag": "other"}] * 3 + [{"tag": f"{i:03}"} for i in range(100)]
    groups = RowGroups(sources(rows), "tag")
    assert names(groups, "tag") == ["other", *(f"{i:03}" for i in range(MOST - 2))]
    assert groups.ids([SampleId(0, 0, 0), SampleId(1, 0, 102)])[:, 1].tolist() == [1, 1]


def test_groups_are_the_same_whatever_the_order_of_rows(sources):
    rows = [{"tag": str(i % 70)} for i in range(150)]
    assert RowGroups(sources(rows), "tag").groups == RowGroups(sources(rows[::-1]), "tag").groups


def test_a_column_called_source_is_told_apart_from_sources(sources):
    groups = RowGroups(sources([{"source": "books"}]), "source")
    assert names(groups, "column source") == ["books"] and len(names(groups, "source")) == 1


def test_two_sources_of_one_name_are_told_apart(sources):
    (source,) = sources([{"text": "x"}])
    groups = RowGroups([source, source], None)
    assert names(groups, "source") == [f"0 {source.name}", f"1 {source.name}"]


def test_a_long_value_has_a_short_name_on_one_line(sources):
    rows = [{"tag": "a\n" * 100 + end} for end in ("", "b")]
    one, other = names(RowGroups(sources(rows), "tag"), "tag")
    assert one != other and len(one) == len(other) == LONGEST, "that begin alike"
    assert one.startswith("a a a a") and other.startswith("a a a a")


def test_a_name_holds_nothing_that_a_terminal_obeys(sources):
    assert names(RowGroups(sources([{"tag": "\x1b[31mred\x07"}]), "tag"), "tag") == ["[31mred"]


def test_rows_of_a_source_without_the_column_are_counted_as_none(sources):
    groups = RowGroups(sources([{"tag": "code"}], [{"text": "replayed"}]), "tag")
    assert names(groups, "tag") == ["none", "code"]


def test_a_column_that_no_source_has_is_refused_with_the_columns_there_are(sources):
    opened = sources([{"text": "y", "topic": "z"}, {"lang": "de"}], [{"tag": None, "text": "x"}])
    with pytest.raises(DataError) as caught:
        refuse_unknown("tags", opened)
    assert str(caught.value) == (
        "tracking.group_by: no row has the column 'tags'; columns: text, topic, lang, tag\n"
        "  fix: name one of these, add 'tags' to the rows, or leave out tracking.group_by"
    )
    refuse_unknown("tag", opened)  # null is a value that is not known, not a column
    refuse_unknown("lang", opened)


def test_totals_of_groups_are_those_of_their_samples():
    ids = np.array([[0, 2], [1, 2], [0, 3]], np.int32)
    totals = totals_of(ids, np.array([1.5, 2.0, 0.0]), np.array([3, 2, 0]))
    assert totals == (
        GroupTotals(0, 1.5, 3), GroupTotals(1, 2.0, 2), GroupTotals(2, 3.5, 5), GroupTotals(3, 0.0, 0),
    )  # fmt: skip
    assert totals_of(np.zeros((0, 2), np.int32), np.zeros(0), np.zeros(0, int)) == ()
    assert added([*totals, GroupTotals(2, 0.5, 1)])[2] == GroupTotals(2, 4.0, 6)
    groups = Groups((("source", "a"), ("source", "b"), ("tag", "x"), ("tag", "y")))
    assert groups.losses([3.0, 1.0, 4.0, 0.0], totals) == (
        GroupLoss("source", "a", 2.0, 1.5, 3), GroupLoss("source", "b", 0.5, 2.0, 2),
        GroupLoss("tag", "x", 4.0 / 3.5, 3.5, 5),
    )  # fmt: skip
