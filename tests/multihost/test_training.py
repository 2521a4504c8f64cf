"""ZeRO-3 over several hosts, submitted from another one; and what happens when a host is lost."""

import shutil
import subprocess

import pytest
import yaml

from dist_sft.tracking.json_lines import records_in
from tests.cluster.ray_head import BIN, TOKEN, environment
from tests.multihost.cluster import cluster
from tests.multihost.hosts import why_not
from tests.ranks import wait_for_step

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]
STEPS = 40


@pytest.fixture(scope="module")
def hosts():
    with cluster("left", "right") as made:
        yield made


@pytest.fixture(scope="module")
def desk(tiny_run, tiny_rows, tmp_path_factory):
    """A folder at the desk: a run file, and the rows beside it."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copy(tiny_rows, folder / "rows.jsonl")
    settings = tiny_run | {
        "run": {"name": "hosts", "dir": "/to/be/named", "seed": 3},
        "model": tiny_run["model"] | {"neftune": {"alpha": 5}},
        "data": {"sources": [{"path": "rows.jsonl"}], "context_length": 256},
        "train": tiny_run["train"] | {"steps": STEPS, "learning_rate": 0.005},
        "checkpoint": {"every": 5},
        "cluster": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 0.6, "interface": "eth0"},  # one on a host
        "service": {"cpus_per_encoder": 0.3},
        "deepspeed": {"zero_optimization": {"stage": 3}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def learned_alone(desk, tmp_path_factory):
    """What the same run file learns on one machine."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    command = [BIN / "dist-sft", "train", "run.yaml", f"run.dir={folder}", "cluster.interface=null"]
    done = subprocess.run(
        command, cwd=desk, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return learned(folder)


def learned(run_dir):
    """What each step was (its loss, and how much there was to learn in it), and each row that was left out."""
    return steps(run_dir), sorted((run_dir / "ledger.jsonl").read_text().splitlines())


def steps(run_dir):
    """Loss, tokens and supervised tokens by step."""
    records = records_in(run_dir / "metrics.jsonl", "step")
    return {record["step"]: (record["loss"], record["tokens"], record["supervised"]) for record in records}


def starts(run_dir):
    """The step after which each start of the ranks went on."""
    return [record["step"] for record in records_in(run_dir / "metrics.jsonl", "note") if record["text"] == "start"]


def one_wandb_run(run_dir):
    """Whether all starts of the ranks went on with the same run of W&B's, of which each wrote a part."""
    parts = [path.name for path in run_dir.glob("wandb/**/offline-run-*") if path.is_dir()]
    return len(parts) >= len(starts(run_dir)) and len({name.rpartition("-")[2] for name in parts}) == 1


def test_two_hosts_learn_what_one_machine_learns(hosts, desk, learned_alone, tmp_path):
    before = {name: host.sent() for name, host in hosts.workers.items()}
    with (tmp_path / "log").open("w+") as log:
        job = hosts.sft(
            "submit", "run.yaml", f"run.dir={tmp_path / 'run'}", "--address", hosts.address, cwd=desk, log=log
        )
        wait_for_step(tmp_path / "run", 1, job)
        assert hosts.training() == ["left", "right"]
        code = job.wait(300)
    assert code == 0, (tmp_path / "log").read_text()
    assert learned(tmp_path / "run") == learned_alone
    for name, host in hosts.workers.items():
        assert host.sent() - before[name] > STEPS * 1_000_000, name  # gradients of half a million float32


def test_without_the_token_nobody_is_let_in(hosts, desk, tmp_path):
    with (tmp_path / "log").open("w+") as log:
        options = ("--address", hosts.address, f"run.dir={tmp_path / 'run'}")
        assert hosts.sft("submit", "run.yaml", *options, cwd=desk, log=log, RAY_AUTH_MODE="disabled").wait(60) == 1
        assert hosts.sft("submit", "run.yaml", *options, cwd=desk, log=log, RAY_AUTH_TOKEN="x" + TOKEN).wait(60) == 1
    said = (tmp_path / "log").read_text()
    assert "the cluster asks for a token, and none was sent" in said and "the cluster does not accept the token" in said


def test_a_host_that_is_lost_in_a_step_and_replaced_changes_nothing_that_is_learned(
    hosts, desk, learned_alone, tmp_path
):
    run = tmp_path / "run"
    with (tmp_path / "log").open("w+") as log:
        settings = (f"run.dir={run}", "tracking.wandb.mode=offline", "cluster.max_failures=3")
        job = hosts.sft("submit", "run.yaml", *settings, "--address", hosts.address, cwd=desk, log=log)
        wait_for_step(run, 12, job)
        hosts.workers["right"].power_cut()
        assert job.poll() is None
        hosts.add("right")
        code = job.wait(400)
    assert code == 0, (tmp_path / "log").read_text()
    assert learned(run) == learned_alone and one_wandb_run(run)
    first, *again = starts(run)
    assert first == 0 and again and all(step >= 10 for step in again)
