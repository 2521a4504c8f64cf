"""SIGKILL to the driver and all its workers, through the real command and a real Ray; then the same command again."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests import command
from tests.ranks import losses, train_on_ranks

STEPS = 16


def settings(tiny_run, folder):
    return tiny_run | {
        "run": {"name": "kill", "dir": str(folder), "seed": 2},
        "model": tiny_run["model"] | {"neftune": {"alpha": 5}},
        "train": tiny_run["train"] | {"steps": STEPS, "learning_rate": 0.005},
        "checkpoint": {"every": 3},
        "cluster": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 0.5},
        "deepspeed": "ds_configs/cpu_debug.json",
    }


def start(run, log):
    """`dist-sft train` of settings."""
    path = Path(run["run"]["dir"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(run))
    return command.start(log, "train", path)


def finish(run, patience=300):
    """To its end, within so many seconds; the losses by step."""
    folder = Path(run["run"]["dir"])
    with open(folder.with_suffix(".log"), "w+") as log:
        driver = start(run, log)
        try:
            code = driver.wait(patience)
        except subprocess.TimeoutExpired:
            kill_everything(driver)
            code = f"none after {patience} s"
        log.seek(0)
        assert code == 0, f"exit code {code}\n{log.read()}"
    return losses(folder)


def kill_everything(driver):
    """The driver first, then everything that it had started: nothing gets a chance to tidy up."""
    family = [driver, *psutil.Process(driver.pid).children(recursive=True)]
    for process in family:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    driver.wait()
    psutil.wait_procs(family[1:], timeout=30)


def kill_after(run, step, delay=0.0):
    """Run until metrics.jsonl has `step`, wait a little, and kill."""
    folder = Path(run["run"]["dir"])
    with open(folder.with_suffix(".log"), "w") as log:
        driver = start(run, log)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and driver.poll() is None:
            if Path(folder, "metrics.jsonl").exists() and max([0, *losses_so_far(folder)]) >= step:
                break
            time.sleep(0.02)
        assert driver.poll() is None, Path(log.name).read_text()
        time.sleep(delay)
        kill_everything(driver)


def losses_so_far(folder):
    try:
        return losses(folder)
    except ValueError:  # a line that is being written
        return {}


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """Losses of the run that nothing kills, trained without Ray."""
    run = settings(tiny_run, tmp_path_factory.mktemp("kill") / "whole")
    train_on_ranks([run], run["cluster"]["workers"])
    return losses(run["run"]["dir"])


@pytest.mark.soak
@pytest.mark.xdist_group("ray")
def test_killed_again_and_again_at_random_moments(tiny_run, whole, tmp_path):
    rng = random.Random(0)
    for round_ in range(6):
        run = settings(tiny_run, tmp_path / f"round{round_}")
        for step in sorted(rng.sample(range(1, STEPS - 1), 2)):
            kill_after(run, step, delay=rng.random() * 0.5)
        assert finish(run) == pytest.approx(whole, abs=1e-6)
