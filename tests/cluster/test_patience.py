"""What takes long and goes on is not taken for stuck; through a real Ray."""

import signal
import time

import pytest

from dist_sft.checkpoint.layout import whole_steps
from dist_sft.core.storage import storage_path
from tests.checkpoint.test_urls import s3, server
from tests.command import process, start
from tests.ranks import records, wait_for_step

__all__ = ["s3", "server"]
pytestmark = pytest.mark.xdist_group("ray")
HANG, TIMES = 3, 150
"""Seconds without a sign of life; how often the tiny rows are scored, for which the tiny model takes longer."""


@pytest.fixture(autouse=True)
def patient_ray(monkeypatch):
    """Only the watchdog is in a hurry."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "60")


def test_an_evaluation_that_is_longer_than_the_watchdogs_patience_comes_to_its_end(run, tmp_path):
    folder, held_out = tmp_path / "run", tmp_path / "held_out.jsonl"
    held_out.write_text(run.rows.read_text() * TIMES)
    ended = process(
        "train", run.file, f"run.dir={folder}", "train.steps=2", f"eval.source={held_out}", f"cluster.hang={HANG}",
        "service.encoders=0",
    )  # fmt: skip
    assert ended.returncode == 0, ended
    (began,) = [note["time"] for note in records(folder, "note") if note["text"] == "start"]
    before, after = records(folder, "eval")
    assert before["step"] == 0 and before["time"] - began > HANG < after["time"] - records(folder)[-1]["time"]
    assert not (folder / "stacks").exists()


def test_a_last_checkpoint_that_takes_longer_than_the_watchdogs_patience_becomes_whole(run, server, s3, tmp_path):
    folder, url = tmp_path / "run", f"{s3}/patience"
    settings = (f"run.dir={folder}", f"checkpoint.url={url}", f"cluster.hang={HANG}", "service.encoders=0")
    with (tmp_path / "log").open("w+") as log:
        job = start(log, "train", run.file, *settings, "train.steps=30", "checkpoint.every=1000")
        wait_for_step(folder, 1, job)
        server.process.send_signal(signal.SIGSTOP)
        try:
            wait_for_step(folder, 30, job)
            time.sleep(HANG + 3)
            assert job.poll() is None and not (folder / "stacks").exists()
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert job.wait(200) == 0, (tmp_path / "log").read_text()
    assert whole_steps(storage_path(url)) == [30]
