"""ZeRO-3 over several hosts, submitted from another one; and what happens when a host is lost or a rank frozen."""

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.multihost.hosts import why_not
from tests.multihost.runs import EVERY, learned, one_wandb_run, starts
from tests.ranks import wait_for_step
from tests.ray_head import TOKEN

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(900),
]
FIRST, SECOND = 12, 26
"""Steps after which something happens to the run; not while it saves, when nobody watches for stuck ranks."""


@dataclass(frozen=True)
class Disturbed:
    """A run on two hosts, and what was seen of it. sent: bytes, by host, until the first fault.

    again: the steps after which the ranks started anew, after a host was lost and after a rank was frozen.
    """

    folder: Path
    training: list[str]
    sent: dict[str, int]
    again: tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def disturbed(hosts, desk, tmp_path_factory):
    """Its host "right" loses power after step 12, and is replaced; the rank there is frozen after step 26."""
    folder = tmp_path_factory.mktemp("disturbed")
    run, before = folder / "run", {name: host.sent() for name, host in hosts.workers.items()}
    options = (f"run.dir={run}", "tracking.wandb.mode=offline", "cluster.max_failures=3", "cluster.hang=20")
    with (folder / "log").open("w+") as log:
        job = hosts.sft("submit", "run.yaml", *options, "--address", hosts.address, cwd=desk, log=log)
        wait_for_step(run, FIRST, job)
        training, sent = hosts.training(), {name: host.sent() - before[name] for name, host in hosts.workers.items()}
        hosts.workers["right"].power_cut()
        assert job.poll() is None
        hosts.add("right")
        wait_for_step(run, SECOND - EVERY, job)
        ranks = hosts.workers["right"].processes("RayTrainWorker")
        wait_for_step(run, SECOND, job)
        for process in ranks:
            process.send_signal(signal.SIGSTOP)
        lost = starts(run)[1:]
        assert job.wait(500) == 0, (folder / "log").read_text()
    return Disturbed(run, training, sent, (lost, starts(run)[1 + len(lost) :]))


def test_two_hosts_learn_what_one_machine_learns_whatever_happens_to_them(disturbed, learned_alone):
    assert learned(disturbed.folder) == learned_alone and one_wandb_run(disturbed.folder)
    assert disturbed.training == ["left", "right"]
    for name, sent in disturbed.sent.items():
        assert sent > FIRST * 1_000_000, name  # gradients of half a million float32


def test_after_the_loss_of_a_host_the_run_goes_on_from_its_checkpoint(disturbed):
    lost, _ = disturbed.again
    assert lost and all(step >= FIRST - EVERY for step in lost)


def test_a_rank_that_is_frozen_is_found_and_all_start_again(disturbed):
    _, frozen = disturbed.again
    assert len(frozen) == 1 and frozen[0] >= SECOND - EVERY
    said = [file.read_text() for file in (disturbed.folder / "stacks").iterdir()]
    assert all("no step for 20 s" in text and "train/engine.py" in text for text in said), "where they wait"


def test_without_the_token_nobody_is_let_in(hosts, desk, run, tmp_path):
    with (tmp_path / "log").open("w+") as log:
        options = ("--address", hosts.address, f"run.dir={run}")
        assert hosts.sft("submit", "run.yaml", *options, cwd=desk, log=log, RAY_AUTH_MODE="disabled").wait(60) == 1
        assert hosts.sft("submit", "run.yaml", *options, cwd=desk, log=log, RAY_AUTH_TOKEN="x" + TOKEN).wait(60) == 1
    said = (tmp_path / "log").read_text()
    assert "the cluster asks for a token, and none was sent" in said and "the cluster does not accept the token" in said
