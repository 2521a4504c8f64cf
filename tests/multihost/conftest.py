"""Hosts that the tests of this folder share, and a run that is submitted to them from the desk."""

import shutil

import pytest
import yaml

from tests.multihost.cluster import cluster
from tests.multihost.runs import EVERY, STEPS, learned
from tests.ranks import train_on_ranks


@pytest.fixture(scope="package")
def hosts():
    """Two that train. Whoever takes one away gives it back."""
    with cluster("left", "right") as made:
        yield made


@pytest.fixture(scope="package")
def desk(tiny_run, tiny_rows, tmp_path_factory):
    """A folder at the desk: a run file, and the rows beside it."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(tiny_rows, folder / "rows.jsonl")
    settings = tiny_run | {
        "run": {"name": "hosts", "dir": "/to/be/named", "seed": 3},
        "model": tiny_run["model"] | {"neftune": {"alpha": 5}},
        "data": {"sources": [{"path": "rows.jsonl"}], "context_length": 256},
        "train": tiny_run["train"] | {"steps": STEPS, "learning_rate": 0.005},
        "checkpoint": {"every": EVERY},
        "cluster": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 0.6, "interface": "eth0"},  # one on a host
        "service": {"cpus_per_encoder": 0.3},
        "deepspeed": {"zero_optimization": {"stage": 3}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="package")
def alone(desk, tiny_rows, tmp_path_factory):
    """A function: steps -> what the run file of the desk learns in so many, on one machine and without Ray."""

    def trained(steps):
        folder = tmp_path_factory.mktemp("alone") / "run"
        settings = yaml.safe_load((desk / "run.yaml").read_text())
        settings["run"]["dir"], settings["train"]["steps"] = str(folder), steps
        settings["data"]["sources"] = [{"path": str(tiny_rows)}]
        train_on_ranks([settings], 2)
        found, left_out = learned(folder)
        return found, [line.replace(f"{tiny_rows.parent}/", "") for line in left_out]

    return trained


@pytest.fixture(scope="package")
def learned_alone(alone):
    """What the run file of the desk learns on one machine."""
    return alone(STEPS)


@pytest.fixture
def run(tmp_path):
    """The run folder, on storage that all hosts see."""
    return tmp_path / "run"


@pytest.fixture
def submit(hosts, desk, run, tmp_path):
    """A function: options -> the process that follows the job, from the desk."""
    with (tmp_path / "log").open("w+") as log:

        def submitted(*options):
            settings = (f"run.dir={run}", "tracking.wandb.mode=offline", *options)
            return hosts.sft("submit", "run.yaml", *settings, "--address", hosts.address, cwd=desk, log=log)

        yield submitted


@pytest.fixture
def ended(tmp_path):
    """A function: a job -> its exit code, and all that was followed, once it is over."""

    def waited(job, seconds=500):
        code = job.wait(seconds)
        return code, (tmp_path / "log").read_text()

    return waited
