"""Of a run whose ranks are killed every minute, most of the work is kept."""

import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from dist_sft.tracking.json_lines import Goodput
from tests.ranks import ROOT, losses, records, wait_for_step

MINUTES = 5


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("ray")
def test_a_run_with_a_kill_every_minute_keeps_four_fifths_of_its_steps(tiny_run, tmp_path):
    """Steps that were made and lost are those after the checkpoint that the ranks went on from."""
    run, dice, lost = tmp_path / "run", random.Random(0), []
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_run, run)))
    with open(tmp_path / "log", "w+") as log:
        command = [Path(sys.executable).with_name("dist-sft"), "train", path]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        wait_for_step(run, 1, driver)
        for kill in range(1, MINUTES + 1):
            time.sleep(60)
            dice.choice(ranks_of(driver)).kill()
            made = max(losses(run))
            while len(starts := begun(run)) <= kill:
                assert driver.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
            lost.append(made - starts[-1])
        driver.terminate()
        driver.wait(60)
    kept, share = max(losses(run)), Goodput.so_far(run / "metrics.jsonl", now := time.time()).share(now)
    print(f"{kept} steps kept, {lost} lost; {share:.0%} of the time went into steps that were kept")
    assert kept > 5 * MINUTES and kept / (kept + sum(lost)) >= 0.8, (kept, lost)


def settings(tiny_run, run):
    return tiny_run | {
        "run": {"name": "goodput", "dir": str(run), "seed": 2},
        "train": tiny_run["train"] | {"steps": 1_000_000},
        "checkpoint": {"every": 20},
        "cluster": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 0.5, "max_failures": 99},
        "deepspeed": {"zero_optimization": {"stage": 3}},
    }


def ranks_of(driver):
    family = psutil.Process(driver.pid).children(recursive=True)
    return [process for process in family if "RayTrainWorker" in " ".join(process.cmdline())]


def begun(run):
    """Steps that were there already at each start of the ranks."""
    return [record["step"] for record in records(run, "note") if record["text"] == "start"]
