"""Hosts cut off, taken away or given back, or the head itself: what is learned is what an undisturbed run learns."""

import time

import pytest

from dist_sft.checkpoint.layout import Manifest, newest, whole_steps
from tests.multihost.cluster import cluster
from tests.multihost.hosts import why_not
from tests.multihost.runs import ELASTIC, close, learned, one_wandb_run, starts, steps
from tests.ranks import wait_for_step

pytestmark = [
    pytest.mark.soak,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(900),
]
LONG = 400
"""Steps of a run that outlives the start of a host."""


@pytest.fixture
def hosts():
    """Of one test alone: it does not leave them whole."""
    with cluster("left", "right") as made:
        yield made


@pytest.mark.parametrize("seconds", [20, None], ids=["for 20 s", "for good"])
def test_a_link_that_is_cut(hosts, submit, ended, run, learned_alone, seconds):
    job = submit(*ELASTIC, "cluster.hang=30")
    wait_for_step(run, 8, job)
    hosts.workers["right"].unplug()
    if seconds:
        time.sleep(seconds)
        hosts.workers["right"].plug()
    code, log = ended(job)
    assert code == 0, log
    assert close(run, learned_alone) and one_wandb_run(run)
    assert seconds or Manifest.read(newest(run)).world == 1


def test_a_host_that_is_given_notice_is_saved_from_and_one_that_returns_is_taken_in(hosts, submit, ended, run, alone):
    learned_long = alone(LONG)
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
    code, log = ended(job)
    assert code == 0, log
    assert close(run, learned_long) and one_wandb_run(run)
    assert starts(run)[1] == saved and saved % 1000
    worlds = [Manifest.read(newest(run, step)).world for step in whole_steps(run / "checkpoints")]
    assert worlds[0] == worlds[-1] == 2, "it grew again"


def test_after_the_head_is_lost_the_job_is_submitted_again_and_goes_on(
    hosts, submit, ended, run, desk, learned_alone, tmp_path
):
    job = submit("--patience=20")
    wait_for_step(run, 8, job)
    hosts.head.power_cut()
    code, log = ended(job)
    assert code != 0, log
    with cluster("left", "right") as others, (tmp_path / "again").open("w+") as again:
        options = (f"run.dir={run}", "tracking.wandb.mode=offline", "--address", others.address)
        code = others.sft("submit", "run.yaml", *options, cwd=desk, log=again).wait(500)
        assert code == 0, (tmp_path / "again").read_text()
    assert learned(run) == learned_alone and one_wandb_run(run)
