"""ZeRO-3 over several hosts, submitted from another one; and what happens when a host is lost."""

import pytest

from tests.multihost.hosts import why_not
from tests.multihost.runs import STEPS, learned, one_wandb_run, starts
from tests.ranks import wait_for_step
from tests.ray_head import TOKEN

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.skipif(bool(why_not()), reason=str(why_not()))]


def test_two_hosts_learn_what_one_machine_learns(hosts, submit, ended, run, learned_alone):
    before = {name: host.sent() for name, host in hosts.workers.items()}
    job = submit()
    wait_for_step(run, 1, job)
    assert hosts.training() == ["left", "right"]
    code, log = ended(job)
    assert code == 0, log
    assert learned(run) == learned_alone
    for name, host in hosts.workers.items():
        assert host.sent() - before[name] > STEPS * 1_000_000, name  # gradients of half a million float32


def test_without_the_token_nobody_is_let_in(hosts, desk, run, tmp_path):
    with (tmp_path / "log").open("w+") as log:
        options = ("--address", hosts.address, f"run.dir={run}")
        assert hosts.sft("submit", "run.yaml", *options, cwd=desk, log=log, RAY_AUTH_MODE="disabled").wait(60) == 1
        assert hosts.sft("submit", "run.yaml", *options, cwd=desk, log=log, RAY_AUTH_TOKEN="x" + TOKEN).wait(60) == 1
    said = (tmp_path / "log").read_text()
    assert "the cluster asks for a token, and none was sent" in said and "the cluster does not accept the token" in said


def test_a_host_that_is_lost_in_a_step_and_replaced_changes_nothing_that_is_learned(
    hosts, submit, ended, run, learned_alone
):
    job = submit("cluster.max_failures=3")
    wait_for_step(run, 12, job)
    hosts.workers["right"].power_cut()
    assert job.poll() is None
    hosts.add("right")
    code, log = ended(job)
    assert code == 0, log
    assert learned(run) == learned_alone and one_wandb_run(run)
    first, *again = starts(run)
    assert first == 0 and again and all(step >= 10 for step in again)
