"""Whatever happens to hosts, links, ranks and drivers: what is learned is what an undisturbed run learns."""

import signal
import subprocess
import time

import pytest

from dist_sft.checkpoint.layout import Manifest, newest, whole_steps
from tests.cluster.ray_head import BIN, environment
from tests.multihost.cluster import cluster
from tests.multihost.hosts import why_not
from tests.multihost.test_training import desk, learned, learned_alone, one_wandb_run, starts, steps
from tests.ranks import wait_for_step

__all__ = ["desk", "learned_alone"]
pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(900),
]
LONG = 400
"""Steps of a run that outlives the start of a host."""
ELASTIC = ("cluster.workers=[1,2]", "cluster.max_failures=5", "cluster.regrow=30")


@pytest.fixture
def hosts():
    with cluster("left", "right") as made:
        yield made


@pytest.fixture
def submit(hosts, desk, tmp_path):
    """A function: options of the run file -> the process that follows the job, from the desk."""
    with (tmp_path / "log").open("w+") as log:

        def submitted(*options):
            settings = (f"run.dir={tmp_path / 'run'}", "tracking.wandb.mode=offline", *options)
            return hosts.sft("submit", "run.yaml", *settings, "--address", hosts.address, cwd=desk, log=log)

        yield submitted


@pytest.fixture
def run(tmp_path):
    """The run folder, on storage that all hosts see."""
    return tmp_path / "run"


def ended(job, tmp_path, seconds=500):
    code = job.wait(seconds)
    return code, (tmp_path / "log").read_text()


def close(run, expected):
    """The same steps, samples and ledger; losses to 1e-5, for other ranks add in another order."""
    (found, left_out), (right, left_out_there) = learned(run), expected
    assert left_out == left_out_there
    assert {step: counts for step, (_, *counts) in found.items()} == {step: c for step, (_, *c) in right.items()}
    assert [found[step][0] for step in sorted(right)] == pytest.approx([right[s][0] for s in sorted(right)], rel=1e-5)
    return True


@pytest.fixture(scope="module")
def learned_long(desk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "run"
    command = [
        BIN / "dist-sft",
        "train",
        "run.yaml",
        f"run.dir={folder}",
        "cluster.interface=null",
        f"train.steps={LONG}",
    ]
    subprocess.run(command, cwd=desk, env=environment(), capture_output=True, timeout=600, check=True)
    return learned(folder)


def test_a_rank_that_is_frozen_is_found_and_all_start_again(hosts, submit, run, learned_alone, tmp_path):
    job = submit("cluster.max_failures=3", "cluster.hang=20")
    wait_for_step(run, 8, job)
    for process in hosts.workers["right"].processes("RayTrainWorker"):
        process.send_signal(signal.SIGSTOP)
    code, log = ended(job, tmp_path)
    assert code == 0, log
    assert learned(run) == learned_alone and one_wandb_run(run)
    assert len(starts(run)) == 2
    said = [file.read_text() for file in (run / "stacks").iterdir()]
    assert all("no step for 20 s" in text and "train/engine.py" in text for text in said), "where they wait"


def test_a_driver_that_is_killed_fails_the_job_and_the_same_command_goes_on(
    hosts, submit, run, learned_alone, tmp_path
):
    job = submit()
    wait_for_step(run, 8, job)
    for process in hosts.head.processes("dist-sft train"):
        process.kill()
    code, log = ended(job, tmp_path)
    assert code != 0, log
    code, log = ended(submit(), tmp_path)
    assert code == 0, log
    assert learned(run) == learned_alone and one_wandb_run(run)


@pytest.mark.soak
def test_the_dealer_may_be_lost_with_its_host(hosts, submit, run, learned_alone, tmp_path):
    job = submit("cluster.max_failures=3")
    wait_for_step(run, 8, job)
    assert not hosts.head.processes("DealerActor"), "it is beside an encoder, and the head has no CPU for one"
    (host,) = [host for host in hosts.workers.values() if host.processes("DealerActor")]
    host.power_cut()
    hosts.add(host.name)
    code, log = ended(job, tmp_path)
    assert code == 0, log
    assert learned(run) == learned_alone and one_wandb_run(run)


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [20, None], ids=["for 20 s", "for good"])
def test_a_link_that_is_cut(hosts, submit, run, learned_alone, tmp_path, seconds):
    job = submit(*ELASTIC, "cluster.hang=30")
    wait_for_step(run, 8, job)
    hosts.workers["right"].unplug()
    if seconds:
        time.sleep(seconds)
        hosts.workers["right"].plug()
    code, log = ended(job, tmp_path)
    assert code == 0, log
    assert close(run, learned_alone) and one_wandb_run(run)
    assert seconds or Manifest.read(newest(run)).world == 1


@pytest.mark.soak
def test_a_host_that_is_given_notice_is_saved_from_and_one_that_returns_is_taken_in(
    hosts, submit, run, learned_long, tmp_path
):
    job = submit(*ELASTIC, f"train.steps={LONG}", "checkpoint.every=1000", "checkpoint.keep=99")
    wait_for_step(run, 20, job)
    hosts.drain("right", seconds=15)
    deadline = time.monotonic() + 14
    while not whole_steps(run / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.1)
    (saved,) = whole_steps(run / "checkpoints")
    hosts.workers["right"].power_cut()
    wait_for_step(run, len(steps(run)) + 10, job)
    hosts.add("right")
    code, log = ended(job, tmp_path)
    assert code == 0, log
    assert close(run, learned_long) and one_wandb_run(run)
    assert starts(run)[1] == saved and saved % 1000
    worlds = [Manifest.read(newest(run, step)).world for step in whole_steps(run / "checkpoints")]
    assert worlds[0] == worlds[-1] == 2, "it grew again"


@pytest.mark.soak
def test_after_the_head_is_lost_the_job_is_submitted_again_and_goes_on(
    hosts, submit, run, desk, learned_alone, tmp_path
):
    job = submit("--patience=20")
    wait_for_step(run, 8, job)
    hosts.head.power_cut()
    code, log = ended(job, tmp_path)
    assert code != 0, log
    with cluster("left", "right") as others, (tmp_path / "again").open("w+") as again:
        options = (f"run.dir={run}", "tracking.wandb.mode=offline", "--address", others.address)
        code = others.sft("submit", "run.yaml", *options, cwd=desk, log=again).wait(500)
        assert code == 0, (tmp_path / "again").read_text()
    assert learned(run) == learned_alone and one_wandb_run(run)
