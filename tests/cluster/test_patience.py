"""What takes long and goes on is not taken for stuck: the watchdog of real ranks."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dist_sft.checkpoint.layout import whole_steps
from dist_sft.core.storage import storage_path
from tests.checkpoint.test_kills import alive
from tests.checkpoint.test_urls import s3, server
from tests.ranks import local_ranks, records, wait_for_step

__all__ = ["s3", "server"]
pytestmark = pytest.mark.xdist_group("urls")
HANG, TIMES = 2.5, 100
"""Seconds without a sign of life; how often the tiny rows are scored, for which the tiny model takes longer."""


def main(spec):
    """The rank of such a run, as `cluster.worker` starts it."""
    import torch.distributed as dist

    from dist_sft.cluster.heartbeat import Watchdog
    from dist_sft.run.assembly import work

    class Alone(Watchdog):
        """Without Ray Train, which would tell of nodes that are being taken away."""

        def step(self, done):
            self.beat()
            return False

    dist.init_process_group("gloo", init_method=f"file://{spec['store']}", rank=0, world_size=1)
    settings = spec["settings"]
    work(settings, "patience", heartbeat=Alone(HANG, Path(settings["run"]["dir"], "stacks"), int(os.environ["RANK"])))


def begin(settings, folder):
    """The rank of a run, which is started, as wait_for_step takes a process."""
    folder.mkdir()
    spec = {"settings": settings, "store": str(folder / "store")}
    pids = local_ranks().start("tests.cluster.test_patience", spec, 1, folder)
    return SimpleNamespace(poll=lambda: None if alive(pids) else 0)


def settings(tiny_run, folder, steps, **sections):
    return tiny_run | {"run": {"dir": str(folder)}, "train": tiny_run["train"] | {"steps": steps}} | sections


def test_an_evaluation_that_is_longer_than_the_watchdogs_patience_comes_to_its_end(tiny_run, tiny_rows, tmp_path):
    folder, held_out = tmp_path / "run", tmp_path / "held_out.jsonl"
    held_out.write_text(tiny_rows.read_text() * TIMES)
    begin(settings(tiny_run, folder, 2, eval={"source": {"path": str(held_out)}}), tmp_path / "start")
    assert local_ranks().wait(200) == [0]
    (began,) = [note["time"] for note in records(folder, "note") if note["text"] == "start"]
    before, after = records(folder, "eval")
    assert before["step"] == 0 and before["time"] - began > HANG < after["time"] - records(folder)[-1]["time"]
    assert not (folder / "stacks").exists()


def test_a_last_checkpoint_that_takes_longer_than_the_watchdogs_patience_becomes_whole(tiny_run, server, s3, tmp_path):
    folder, url = tmp_path / "run", f"{s3}/patience"
    rank = begin(settings(tiny_run, folder, 30, checkpoint={"url": url, "every": 1000}), tmp_path / "start")
    wait_for_step(folder, 1, rank)
    server.process.send_signal(signal.SIGSTOP)
    try:
        wait_for_step(folder, 30, rank)
        time.sleep(HANG + 3)
        assert not (folder / "stacks").exists()
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert local_ranks().wait(200) == [0]
    assert whole_steps(storage_path(url)) == [30]
