"""`dist-sft steps`: the same samples per step on any number of ranks, each once per epoch."""

import json
from collections import Counter

import pytest

pytestmark = pytest.mark.xdist_group("cluster")  # one worker makes the run of the fixture

ROWS, PER_STEP = 60, 13
TWO_EPOCHS = ("train.steps=null", "train.epochs=2")


@pytest.fixture
def steps(sft, run):
    def command(*options):
        ended = sft("steps", run.file, *TWO_EPOCHS, "--json", *options)
        assert ended.code == 0, ended.error
        assert ended.error == ""
        return ended.values

    return command


def test_one_two_three_and_seven_ranks_get_the_same_samples_in_each_step(steps):
    dealt = {world: steps("--count", 10, "--world", world) for world in (1, 2, 3, 7)}
    for world, listed in dealt.items():
        assert [step["step"] for step in listed] == list(range(10))
        assert [len(step["packs"]) for step in listed] == [world] * 10
        for key in ("samples", "hash", "supervised", "weight", "dropped"):
            assert [step[key] for step in listed] == [step[key] for step in dealt[1]], key
    assert len({step["hash"] for step in dealt[1]}) == 10


def test_each_sample_comes_once_per_epoch_in_another_order_each_time(steps):
    listed = steps("--count", 10)
    order = [sample for step in listed for sample in step["samples"]]
    assert not any(step["dropped"] for step in listed)
    assert [len(step["samples"]) for step in listed] == [PER_STEP] * 9 + [2 * ROWS - 9 * PER_STEP]
    first, second = order[:ROWS], order[ROWS:]
    assert sorted(first) == sorted(second) == sorted(f"0:{row}" for row in range(ROWS))
    assert first != second


def test_every_sample_of_a_step_lies_in_exactly_one_pack(steps):
    for step in steps("--count", 3, "--world", 3, "train.tokens_per_pack=1024", "train.micro_steps=2"):
        packed = Counter(index for rank in step["packs"] for pack in rank for index in pack)
        assert packed == Counter(range(len(step["samples"])))
        assert {len(rank) for rank in step["packs"]} == {len(step["packs"][0])}, "ranks differ in micro-steps"
        assert all(tokens <= 1024 for rank in step["tokens"] for tokens in rank)
        assert step["balance"] >= 1


def test_from_and_count_are_a_window_on_the_same_steps(steps):
    assert steps("--from", 4, "--count", 2) == steps("--count", 10)[4:6]
    assert [step["step"] for step in steps("--from", 9, "--count", 5)] == [9]


def test_rows_that_are_not_learned_are_listed_with_the_reason(steps):
    listed = steps("--count", 10, "data.context_length=80")
    dropped = [row for step in listed for row in step["dropped"]]
    assert dropped and {row["reason"] for row in dropped} == {"overlong"}
    assert all("rows.jsonl:" in row["where"] for row in dropped)
    assert len(dropped) + sum(len(step["samples"]) for step in listed) == 2 * ROWS


def test_a_step_in_which_nothing_can_be_learned_is_shown_as_empty(sft, run):
    lines = run.rows.read_text().splitlines()
    run.rows.write_text("\n".join(lines[:1] + [json.dumps({"messages": []})] * 5) + "\n")
    ended = sft(
        "steps", run.file, "train.samples_per_step=1", "train.steps=6", "--count", 6, "data.bad_rows=drop", "--json"
    )
    assert ended.code == 0, ended.error
    assert sorted(len(step["samples"]) for step in ended.values) == [0] * 5 + [1]


def test_a_step_past_the_end_is_refused(refused, run):
    assert refused("steps", run.file, "--from", 1) == (
        "--from: there is no step 1: the run has 1, counted from 0\n"
        "  fix: use --from 0 to 0, or raise train.steps or train.epochs"
    )


def test_the_table_shows_each_rank(sft, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    ended = sft("steps", run.file, "--world", 2, "train.micro_steps=2")
    assert "step 0: 13 samples" in ended.out and "micro-step 1: tokens, samples" in ended.out
    assert "supervised tokens" in ended.out and "hash " in ended.out
