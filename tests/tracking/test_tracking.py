"""Figures reach the file, the console and W&B; nothing secret does."""

import json
import os

import pytest

from dist_sft.config.resolve import redacted
from dist_sft.config.sections import RunSection, WandbSection
from dist_sft.core.results import EvalResult, StepResult
from dist_sft.tracking.console import Console
from dist_sft.tracking.json_lines import JsonLines
from dist_sft.tracking.tracker import RankZeroTracker
from dist_sft.tracking.wandb_sink import Wandb


def result(step):
    return StepResult(step, 1.5, 0.7, 1e-5, 800, 400, 2.0, 0.1, 3, 1.01, 4e12)


def test_throughput_is_derived_from_tokens_and_seconds(tmp_path):
    tracker = RankZeroTracker([JsonLines(tmp_path / "m.jsonl", 0)], world=4, peak_flops=1e12)
    tracker.step(result(1))
    tracker.close()
    record = json.loads((tmp_path / "m.jsonl").read_text())
    assert record["tokens_per_second_per_rank"] == 100
    assert record["supervised_per_second"] == 200
    assert record["mfu"] == 0.5


def test_a_resumed_run_forgets_what_it_will_do_again_and_torn_lines(tmp_path):
    path = tmp_path / "m.jsonl"
    tracker = RankZeroTracker([JsonLines(path, 0)], 1, None)
    for step in (1, 2, 3):
        tracker.step(result(step))
    tracker.close()
    path.write_bytes(path.read_bytes() + b'{"kind": "st')
    resumed = RankZeroTracker([JsonLines(path, 2)], 1, None)
    resumed.step(result(3))
    resumed.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_the_console_says_what_a_person_and_grep_need():
    lines = []
    tracker = RankZeroTracker([Console(10, 5, lines.append)], 1, None)
    for step in range(1, 11):
        tracker.step(result(step))
    tracker.evaluation(EvalResult(10, 1.25, 4000))
    assert [line.split(" ", 1)[1] for line in lines] == [
        "step 5/10  loss 1.5000  grad 0.70  lr 1.0e-05  400 tok/s/rank  balance 1.01  wait 0.1s",
        "step 10/10  loss 1.5000  grad 0.70  lr 1.0e-05  400 tok/s/rank  balance 1.01  wait 0.1s",
        "eval step 10/10  loss 1.2500  4.0k tokens",
    ]


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
        RankZeroTracker([sink], 1, None).step(result(step))
        sink.close(failed=False)
    names = sorted(path.name.split("-")[-1] for path in tmp_path.glob("wandb/offline-run-*"))
    assert len(names) == 2 and len(set(names)) == 1 and names[0] == (tmp_path / "run_id").read_text()
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"tracked" in content and b"9.9" in content and b"step/loss" in content
    for secret in (b"hunter2", b"k3y", b"hf_topsecret", b"0123456789012345678901234567890123456789"):
        assert secret not in content
    assert os.environ["HF_TOKEN"]
