"""A share of the questions is held out: the same rows in any run, and nothing else of the order changes."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_sft.chat.conversation import Conversation, Document, Message
from dist_sft.chat.encode import Encoder
from dist_sft.config.data import DataSection, LossWeights, OrderSection, PacingSection, Source
from dist_sft.core import seeds
from dist_sft.core.errors import DataError
from dist_sft.data import hold_out as module
from dist_sft.data.arrange import order_of, streams_of
from dist_sft.data.curriculum import LeftOut, Shuffled
from dist_sft.data.encoding import Rows
from dist_sft.data.hold_out import hash_of, hold_out
from dist_sft.data.ledger import Ledger
from dist_sft.data.sources import Picked
from tests.service import chats

SHARE = 0.2


def chat(question, answer="a", system=None):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}, *turns] if system else turns}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(path=str(path))


def opened(sources, cache=None, **data):
    section = DataSection(sources=sources, context_length=200, bad_rows="drop", cache=cache and str(cache), **data)
    return Rows(section.sources, section, Encoder(chats.vocabulary(), "chatml", LossWeights(), 200, "drop"))


def conversation(*turns):
    return Conversation(tuple(Message(role, content) for role, content in turns))


@pytest.fixture
def sources(tmp_path):
    """Questions of which every third is asked in both files; of different difficulties and domains."""
    more = [{"difficulty": i * 7 % 11, "kind": f"k{i % 3}"} for i in range(400)]
    first = [chat(f"What is {i}?") | more[i] for i in range(300)]
    second = [{"question": f"what is  {i}?", "answer": "b"} | more[i] for i in range(0, 360, 3)]
    return [write(tmp_path / "first.jsonl", first), write(tmp_path / "second.jsonl", second)]


def test_rows_of_one_question_fall_on_one_side_in_whatever_format_and_source(sources):
    held = hold_out(opened(sources), SHARE)
    first, second = (set(rows.tolist()) for rows in held.rows)
    assert {row * 3 for row in second if row < 100} == {row for row in first if row % 3 == 0} != set()
    assert held.of == (300, 120) and 0.12 < held.count / 420 < 0.28


def test_a_larger_share_holds_out_what_a_smaller_one_does(sources):
    rows = opened(sources)
    small, large = (set(hold_out(rows, share).rows[0].tolist()) for share in (0.05, 0.5))
    assert small < large and 0.4 < len(large) / 300 < 0.6


@pytest.mark.parametrize("written", [
    "  WHAT is\n\tthe \u00a0capital?", "what \uff49s the capital?", "What is the Capital?",
    "\U0001d416hat is the capital?",
])  # fmt: skip
def test_case_white_space_and_the_form_of_letters_make_no_other_question(written):
    asked = hash_of(conversation(("user", "What is the capital?"), ("assistant", "a")))
    assert hash_of(conversation(("system", "s"), ("user", written), ("assistant", "b"), ("user", "more"))) == asked
    assert hash_of(conversation(("user", written + "?"), ("assistant", "a"))) != asked
    assert hash_of(conversation(("user", "Caf\u00c9"))) == hash_of(conversation(("user", "cafe\u0301")))


def test_a_document_is_known_by_how_it_begins_and_a_chat_without_a_question_by_all_it_says():
    letters = "ab " * 100
    assert hash_of(Document(letters + "x")) == hash_of(Document(" AB\n" + letters[3:] + "y"))
    assert hash_of(Document("x" + letters)) != hash_of(Document(letters))
    alone = [hash_of(conversation(("system", "same"), ("assistant", text))) for text in ("one", "two", "ONE")]
    assert alone[0] == alone[2] != alone[1]


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_the_inverse_of_a_permutation_finds_each_row_again(n, key):
    rows = np.arange(n)
    assert seeds.unpermute(seeds.permute(rows, n, key), n, key).tolist() == rows.tolist()


ORDERS = {
    "shuffled": {},
    "sequential": {"kind": "sequential"},
    "staged": {"kind": "staged"},
    "interleaved": {"kind": "interleaved", "domain": "kind"},
    "paced": {"kind": "interleaved", "pacing": PacingSection(start=0.3)},
}
MIXTURES = {"together": (None, None), "weighted": (3.0, 1.0)}


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("kind", ORDERS)
def test_what_is_left_comes_in_the_order_that_it_had_in_every_epoch(sources, kind, mixture):
    mixed = [source.model_copy(update={"weight": w}) for source, w in zip(sources, MIXTURES[mixture], strict=True)]
    rows = opened(mixed, order=OrderSection(**ORDERS[kind]))
    held = hold_out(rows, SHARE)
    assert [one.tolist() for one in held.rows] == [one.tolist() for one in hold_out(opened(sources), SHARE).rows]
    out = {(source, row) for source, picked in enumerate(held.rows) for row in picked.tolist()}
    for seed in (0, 1):
        whole, left = (streams_of(rows.data, rows.sources, seed, out_) for out_ in ((), held.rows))
        assert len(left) == (2 if mixture == "weighted" else 1)
        for all_rows, others in zip(whole, left, strict=True):
            n, m = len(all_rows), len(others)
            assert n - m == sum(source in all_rows.sources for source, _ in out) > 0
            for epoch in (0, 1, 2):
                before = [(s.source, s.row) for s in all_rows.samples(epoch * n, epoch * n + n)]
                after = [(s.source, s.row) for s in others.samples(epoch * m, epoch * m + m)]
                assert after == [row for row in before if row not in out]
        order = order_of(rows.data, pickle.loads(pickle.dumps(left)), 8, lambda: pytest.fail("no share of tokens"))
        assert not out & {(sample.source, sample.row) for sample in order.samples(0, 1500)}


def test_ten_million_rows_are_looked_up_at_once():
    """A visit late in an epoch, of an order without a table."""
    out = LeftOut(np.arange(0, 10_000_000, 50))
    order = Shuffled(10_000_000, 0, 0)
    assert len(pickle.dumps(out)) < 2_000_000
    found = order.rows(7, out.among_all(np.array([0, 5_000_000, 9_799_999]), order, 7))
    assert (found % 50 != 0).all() and len(set(found.tolist())) == 3


def test_a_row_that_cannot_be_read_stays_in_training_where_the_ledger_has_it(tmp_path):
    good = [chat(f"q{i}") for i in range(60)]
    rows = opened([write(tmp_path / "a.jsonl", [*good, "{", {"strange": 1}, '{"messages": [{"role": "gpt"}]}'])])
    assert hold_out(rows, 0.999).rows[0].tolist() == list(range(60))


def test_the_rows_that_are_held_out_are_counted_by_source(sources, tmp_path):
    held = hold_out(opened(sources), SHARE)
    ledger = Ledger.resume(tmp_path / "ledger.jsonl", 0, write=True)
    ledger.add(held.entries(["first", "second"]))
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(line["where"], line["reason"], line["rows"]) for line in lines] == [
        ("first", "held_out", len(held.rows[0])), ("second", "held_out", len(held.rows[1]))
    ]  # fmt: skip
    assert lines[0]["what"] == f"{len(held.rows[0])} of 300 rows are held out, by eval.share"
    for again in (ledger, Ledger.resume(tmp_path / "ledger.jsonl", 5, write=True)):
        assert (again.counts, again.lost) == ({"held_out": held.count}, 0)
        again.check_share(100, 0.0)  # nothing is wrong with them


def test_a_share_that_holds_out_nothing_or_all_of_a_source_is_refused(tmp_path):
    same = opened([write(tmp_path / "same.jsonl", [chat("one question", answer=str(i)) for i in range(50)])])
    place = hash_of(same.parse(same_row(0))) / 2**64
    with pytest.raises(DataError, match=r"eval.share is .*, and holds out none of 50 rows: rows of one question stay"):
        hold_out(same, place * 0.99)
    held = hold_out(same, place * 1.01)
    with pytest.raises(DataError, match=r"same.jsonl: eval.share holds out all of its 50 rows: nothing is left"):
        streams_of(same.data, same.sources, 0, held.rows)


def same_row(row):
    from dist_sft.data.order import SampleId

    return SampleId(row, 0, row)


def test_the_hashes_of_a_source_are_kept_until_something_that_decides_them_changes(sources, tmp_path, monkeypatch):
    cache, parsed = tmp_path / "cache", []
    monkeypatch.setattr(module, "hash_of", lambda item: parsed.append(item) or hash_of(item))
    first = hold_out(opened(sources, cache), SHARE)
    again = hold_out(opened(sources, cache), SHARE / 2)
    assert len(parsed) == 420 and set(again.rows[0].tolist()) <= set(first.rows[0].tolist())
    hold_out(opened([sources[0], sources[1].model_copy(update={"format": "question_answer"})], cache), SHARE)
    assert len(parsed) == 420 + 120
    for path in (cache / "questions").iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    assert hold_out(opened(sources, cache), SHARE).fingerprint == first.fingerprint and len(parsed) == 420 * 2 + 120


def test_some_rows_of_a_source_are_a_source(sources):
    source = opened(sources).sources[0]
    some = Picked(source, np.array([5, 2, 299]))
    assert (len(some), some[0], some.where(2)) == (3, source[5], f"{source.name}:300")
    assert [row.parse() for row in some.read([2, 0])] == [source[299], source[5]]
    assert some.column("kind") == ["k2", "k2", "k2"] and some.column("none") == [None] * 3
    others = {Picked(source, np.array(rows)).fingerprint for rows in ([5, 2, 299], [5, 2], [2, 5, 299])}
    assert len(others | {source.fingerprint}) == 4 and some.fingerprint in others
