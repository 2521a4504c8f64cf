"""A driver or the dealer is lost, with its host: what is learned is what an undisturbed run learns.

On one host that is tested every day: tests/remote/test_submit.py, tests/service/test_kills.py.
"""

import pytest

from tests.multihost.hosts import why_not
from tests.multihost.runs import learned, one_wandb_run
from tests.ranks import wait_for_step

pytestmark = [
    pytest.mark.soak,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(900),
]


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
