"""Whatever happens to ranks, drivers and the dealer: what is learned is what an undisturbed run learns."""

import signal

import pytest

from tests.multihost.hosts import why_not
from tests.multihost.runs import learned, one_wandb_run, starts
from tests.ranks import wait_for_step

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(900),
]


def test_a_rank_that_is_frozen_is_found_and_all_start_again(hosts, submit, ended, run, learned_alone):
    job = submit("cluster.max_failures=3", "cluster.hang=20")
    wait_for_step(run, 8, job)
    for process in hosts.workers["right"].processes("RayTrainWorker"):
        process.send_signal(signal.SIGSTOP)
    code, log = ended(job)
    assert code == 0, log
    assert learned(run) == learned_alone and one_wandb_run(run)
    assert len(starts(run)) == 2
    said = [file.read_text() for file in (run / "stacks").iterdir()]
    assert all("no step for 20 s" in text and "train/engine.py" in text for text in said), "where they wait"


@pytest.mark.soak  # on one host it is a test of each day: tests/remote/test_submit.py
def test_a_driver_that_is_killed_fails_the_job_and_the_same_command_goes_on(hosts, submit, ended, run, learned_alone):
    job = submit()
    wait_for_step(run, 8, job)
    for process in hosts.head.processes("dist-sft train"):
        process.kill()
    code, log = ended(job)
    assert code != 0, log
    code, log = ended(submit())
    assert code == 0, log
    assert learned(run) == learned_alone and one_wandb_run(run)


@pytest.mark.soak
def test_the_dealer_may_be_lost_with_its_host(hosts, submit, ended, run, learned_alone):
    job = submit("cluster.max_failures=3")
    wait_for_step(run, 8, job)
    assert not hosts.head.processes("DealerActor"), "it is beside an encoder, and the head has no CPU for one"
    (host,) = [host for host in hosts.workers.values() if host.processes("DealerActor")]
    host.power_cut()
    hosts.add(host.name)
    code, log = ended(job)
    assert code == 0, log
    assert learned(run) == learned_alone and one_wandb_run(run)
