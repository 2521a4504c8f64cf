"""Storage that is gone for a while costs a start of the ranks, and not the run: the real command and a real Ray."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dist_sft.checkpoint.layout import whole_steps
from tests.ranks import ROOT, losses, records, wait_for_step

STEPS = 40


def settings(tiny_run, folder):
    return tiny_run | {
        "run": {"name": "outage", "dir": str(folder), "seed": 2},
        "train": tiny_run["train"] | {"steps": STEPS},
        "checkpoint": {"every": 1},
        "cluster": {"workers": 1, "gpus_per_worker": 0, "max_failures": 20},
    }


def link(path, to):
    """Make it, or let it lead elsewhere, in one moment."""
    path.with_name("next").symlink_to(to)
    os.replace(path.with_name("next"), path)


@pytest.mark.soak
@pytest.mark.xdist_group("ray")
def test_a_run_goes_on_when_its_storage_is_back(tiny_run, tmp_path):
    run, disk = tmp_path / "run", tmp_path / "disk"
    run.mkdir()
    disk.mkdir()
    link(run / "checkpoints", disk)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(tiny_run, run)))
    with open(tmp_path / "log", "w") as log:
        command = [Path(sys.executable).with_name("dist-sft"), "train", tmp_path / "run.yaml"]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait_for_step(run, 3, driver)
        link(run / "checkpoints", run / "checkpoints")  # from here on, no path in it leads anywhere
        while (run / "session").read_text() == "1" and driver.poll() is None:
            time.sleep(0.1)
        link(run / "checkpoints", disk)
        code = driver.wait(400)
    assert code == 0, (tmp_path / "log").read_text()
    first, *_, last = [record["step"] for record in records(run, "note") if record["text"] == "start"]
    assert first == 0 and last >= 2 and max(losses(run)) == STEPS and max(whole_steps(disk)) == STEPS
