"""Figures reach the file, the console and W&B; nothing secret does."""

import json
import os
import resource
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from dist_sft.config.redact import redacted
from dist_sft.config.sections import RunSection, WandbSection
from dist_sft.core.errors import StorageError, TrackingError
from dist_sft.core.results import GroupLoss, HeldOut, StepResult
from dist_sft.data.ledger import Entry, Ledger
from dist_sft.tracking.console import Console
from dist_sft.tracking.json_lines import Goodput, JsonLines, tokens_so_far
from dist_sft.tracking.records import Checkpoint, End, Evaluation, Note, Start, Step, line, parsed, read, whole_lines
from dist_sft.tracking.tracker import RankZeroTracker
from dist_sft.tracking.wandb_sink import Wandb


def result(step):
    return StepResult(
        step=step, loss=1.5, grad_norm=0.7, learning_rate=1e-5, tokens=800, supervised=400, source_tokens=(600, 200),
        seconds=2.0, waited=0.1, micro_steps=3, balance=1.01, fill=0.9, dummies=1, padding=8, flops=4e12,
    )  # fmt: skip


GROUPS = (
    GroupLoss("source", "chats.jsonl", 1.0, 100.0, 100),
    GroupLoss("source", "c4.jsonl", 2.0, 100.0, 1300),
    GroupLoss("tag", "math", 1.5, 190.0, 1390),
    GroupLoss("tag", "none", 1.5, 10.0, 10),
)


def tracker_of(sink, world=1, peak_flops=None, so_far=(0, 0), ledger=None, goodput=None):
    sources = ("chats.jsonl", "c4.jsonl")
    return RankZeroTracker(
        [sink], world, peak_flops, sources, list(so_far), ledger or Ledger(), goodput or Goodput(time.time())
    )


def test_throughput_is_derived_from_tokens_and_seconds(tmp_path):
    tracker = tracker_of(JsonLines(tmp_path / "m.jsonl", 0), world=4, peak_flops=1e12)
    tracker.step(result(1))
    tracker.close()
    record = json.loads((tmp_path / "m.jsonl").read_text())
    assert record["tokens_per_second_per_rank"] == 100
    assert record["supervised_per_second"] == 200
    assert record["mfu"] == 0.5


def test_a_resumed_run_forgets_what_it_will_do_again_and_torn_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    tracker = tracker_of(JsonLines(path, 0))
    for step in (1, 2, 3):
        tracker.step(result(step))
    tracker.close()
    path.write_bytes(path.read_bytes() + b'{"kind": "st')
    resumed = tracker_of(JsonLines(path, 2), so_far=tokens_so_far(path, 2, 2))
    resumed.step(result(3))
    resumed.close()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]


def test_each_step_says_which_share_of_all_tokens_each_source_has_had(tmp_path):
    path = tmp_path / "m.jsonl"
    first = tracker_of(JsonLines(path, 0))
    for step, tokens in enumerate(((900, 100), (800, 200), (1, 1)), 1):
        first.step(replace(result(step), source_tokens=tokens))
    resumed = tracker_of(JsonLines(path, 2), so_far=tokens_so_far(path, 2, 2))
    resumed.step(replace(result(3), source_tokens=(500, 500)))
    shares = [json.loads(line)["token_shares"] for line in path.read_text().splitlines()]
    assert [share["1 c4.jsonl"] for share in shares] == [100 / 1000, 300 / 2000, 800 / 3000]
    assert resumed.token_shares == {"0 chats.jsonl": 2200 / 3000, "1 c4.jsonl": 800 / 3000}


def test_each_step_says_what_was_dropped_so_far(tmp_path):
    ledger = Ledger()
    tracker = tracker_of(JsonLines(tmp_path / "m.jsonl", 0), ledger=ledger)
    tracker.step(result(1))
    ledger.add([Entry(1, 70, "a.jsonl:7", "overlong", "9 tokens", lost=5), Entry(1, 71, "a.jsonl:8", "overlong", "8")])
    tracker.step(result(2))
    first, second = (json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines())
    assert "dropped" not in first
    assert (second["dropped"], second["lost"]) == ({"overlong": 2}, 5)


def test_the_console_says_what_a_person_and_grep_need():
    lines = []
    tracker = tracker_of(Console(10, 5, lines.append))
    for step in range(1, 11):
        tracker.step(result(step))
    tracker.evaluation(10, HeldOut(1.25, 4000))
    tracker.checkpoint(10, stall=0.14, seconds=3.06)
    assert [line.split(" ", 1)[1] for line in lines] == [
        "step 5/10  loss 1.5000  grad 0.70  lr 1.0e-05  400 tok/s/rank  balance 1.01  wait 0.1s",
        "step 10/10  loss 1.5000  grad 0.70  lr 1.0e-05  400 tok/s/rank  balance 1.01  wait 0.1s",
        "eval step 10/10  loss 1.2500  4.0k tokens",
        "checkpoint of step 10: training stalled for 0.1 s, whole after 3.1 s",
    ]


def test_the_console_shows_groups_where_there_are_several():
    lines = []
    tracker = tracker_of(Console(10, 1, lines.append))
    tracker.step(replace(result(1), groups=(GROUPS[0], *GROUPS[2:])))
    many = tuple(GroupLoss("tag", f"{'long ' * 9}{i}", 1.0, 1.0, 100 - i) for i in range(8))
    tracker.evaluation(10, HeldOut(1.25, 4000, many))
    step, held_out = lines
    assert step.endswith("wait 0.1s  tag: math 1.5000 (1.4k), none 1.5000 (10)")
    assert held_out.endswith("…g long long long long 5 1.0000 (95) and 2 more")


KEPT = Path(__file__).with_name("kept_metrics.jsonl")
"""Of a run of an earlier version, with a row that was dropped, evaluations and checkpoints."""


def test_what_an_earlier_version_wrote_is_read_and_written_the_same():
    lines = whole_lines(KEPT)
    records = list(parsed(lines, KEPT))
    kinds = [Start, Evaluation, Step, Step, Evaluation, Step, Step, Evaluation, Checkpoint, Checkpoint, End]
    assert [type(record) for record in records] == kinds
    assert [json.loads(line(record)) for record in records] == [json.loads(text) for text in lines]


def test_every_record_is_read_as_it_was_written(tmp_path):
    path, lines = tmp_path / "m.jsonl", []
    tracker = tracker_of(JsonLines(path, 0))
    tracker.sinks.append(type("List", (), {"write": lambda self, record: lines.append(record)})())
    tracker.start(0, "a", 3, "flash")
    tracker.note(0, "a shard was damaged")
    tracker.step(replace(result(1), loss=None, grad_norm=None))
    tracker.step(replace(result(2), groups=GROUPS))
    tracker.evaluation(2, HeldOut(1.25, 4000, GROUPS))
    tracker.checkpoint(2, 0.1, 0.2)
    tracker.end(2, "stopped early")
    found = list(parsed(whole_lines(path), path))
    assert [replace(record, time=0) for record in found] == [replace(record, time=0) for record in lines]
    assert [note.text for note in read(path, Note)] == ["a shard was damaged"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b'{"kind": "other", "step": 1}', "its kind is none of step, eval, checkpoint, note"),
        (b"[]", "its kind is none of"),
        (b'{"kind": "note", "time": 1, "step": "one", "text": "?"}', "step: Input should be a valid integer"),
        (b'{"kind": "eval", "time": 1, "step": 1, "tokens": 5}', "loss: Field required"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, bad, why):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(KEPT.read_bytes() + bad + b"\n")
    for readers in (lambda: read(path, Step), lambda: JsonLines(path, 4)):
        with pytest.raises(TrackingError, match=rf"metrics.jsonl:12: no record of a run: {why}"):
            readers()


@pytest.mark.xdist_group("wandb")
def test_wandb_gets_facts_and_figures_goes_on_with_its_run_and_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789012345678901234567890123456789")
    monkeypatch.setenv("HF_TOKEN", "hf_topsecret")
    facts = {
        "config": {"data": {"path": "s3://user:hunter2@bucket/rows"}, "api_key": "k3y"},
        "versions": {"ray": "9.9"},
    }
    for step in (1, 2):  # the second start of the same run folder
        sink = Wandb(WandbSection(mode="offline"), RunSection(name="tracked"), tmp_path, redacted(facts))
        tracker = tracker_of(sink, ledger=Ledger(entries=[Entry(1, 70, "a.jsonl:7", "overlong", "9 tokens", lost=41)]))
        tracker.step(replace(result(step), groups=GROUPS))
        tracker.evaluation(step, HeldOut(1.25, 4000, GROUPS))
        tracker.checkpoint(step, stall=0.14, seconds=3.06)
        tracker.end(step, "finished")
        sink.close(failed=False)
    names = sorted(path.name.split("-")[3] for path in tmp_path.glob("wandb/offline-run-*"))
    assert len(names) == 2 and len(set(names)) == 1 and names[0] == (tmp_path / "run_id").read_text()
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"tracked" in content and b"9.9" in content and b"step/loss" in content
    assert b"overlong" in content and b"0 chats.jsonl" in content
    for key in (b"train/loss/source/c4.jsonl", b"train/tokens/tag/math", b"eval/loss/tag/none"):
        assert key in content
    assert b"step/goodput" in content and b"checkpoint/stall" in content
    for secret in (b"hunter2", b"k3y", b"hf_topsecret", b"0123456789012345678901234567890123456789"):
        assert secret not in content
    assert os.environ["HF_TOKEN"]


@pytest.mark.xdist_group("wandb")
def test_the_id_at_wandb_is_whole_or_made_anew(tmp_path):
    """An empty file is what a power cut leaves of one that was not written atomically."""

    def start():
        return Wandb(WandbSection(mode="offline"), RunSection(name="cut"), tmp_path, {})

    path, (soft, hard) = tmp_path / "run_id", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no byte can be written
    try:
        with pytest.raises(StorageError, match="run_id: cannot be written"):
            start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    path.touch()
    for _ in range(2):
        start().close(failed=False)
    (name,) = {run.name.split("-")[3] for run in tmp_path.glob("wandb/offline-run-*")}
    assert name == path.read_text() and len(name) == 12


def test_goodput_counts_steps_once_and_all_the_time_since_the_first_start(tmp_path):
    """Two steps of 3 s and one that was done twice, 20 s after the first start."""

    def start(step, at):
        return Start(time=at, step=step, attempt="a", steps=2, world=1, attention="segments")

    def done(step, at):
        values = {field.name: getattr(result(step), field.name) for field in fields(StepResult)} | {"seconds": 3.0}
        return Step(**values, time=at, tokens_per_second_per_rank=1.0, supervised_per_second=1.0, goodput=1.0)

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(start(0, 100.0)) + line(done(1, 104.0)) + line(done(2, 108.0)))
    kept = JsonLines(path, 1)  # step 2 was lost
    kept.write(start(1, 112.0))
    kept.write(done(2, 116.0))
    kept.close(False)
    assert Goodput.so_far(path, now=120.0).share(now=120.0) == pytest.approx(0.3)
    assert Goodput.so_far(tmp_path / "none", now=1.0) == Goodput(began=1.0, useful=0.0)


def test_a_run_that_died_before_its_first_checkpoint_remembers_when_it_was_started(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = tracker_of(JsonLines(path, 0))
    first.start(0, "a", 5, "segments")
    first.evaluation(0, HeldOut(2.0, 4000))
    first.step(result(1))
    first.close()
    (began,) = [start.time for start in read(path, Start)]
    sink = JsonLines(path, 0)
    goodput = Goodput.so_far(path, now=began + 100)
    assert goodput == Goodput(began, useful=0.0), "step 1 was lost"
    again = tracker_of(sink, goodput=goodput)
    again.evaluation(0, HeldOut(2.0, 4000))
    again.step(result(1))
    assert goodput.share(now=began + 100) == pytest.approx(2.0 / 100)
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert kinds == ["note", "eval", "step"]


def test_each_step_says_the_goodput_so_far(tmp_path):
    tracker = tracker_of(JsonLines(tmp_path / "m.jsonl", 0), goodput=Goodput(time.time() - 40, useful=8.0))
    tracker.step(result(1))
    tracker.step(result(2))
    shares = [step.goodput for step in read(tmp_path / "m.jsonl", Step)]
    assert shares == pytest.approx([10 / 40, 12 / 40], rel=0.01)
