"""Twenty runs, each with two faults at moments that dice choose: what is learned is what an undisturbed run learns."""

import random
import signal
import time
from dataclasses import dataclass, field

import psutil
import pytest

from tests.multihost.cluster import cluster
from tests.multihost.hosts import why_not
from tests.multihost.runs import ELASTIC, STEPS, close, one_wandb_run, steps
from tests.ranks import wait_for_step

pytestmark = [
    pytest.mark.soak,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
    pytest.mark.timeout(900),
]


@dataclass
class Run:
    """A run that is disturbed. said: what happened to it, for whom a test fails."""

    hosts: object
    desk: object
    folder: object
    log: object
    job: object = None
    said: list = field(default_factory=list)

    def submit(self):
        settings = (
            f"run.dir={self.folder}", "tracking.wandb.mode=offline", *ELASTIC, "cluster.hang=30", "service.stall=5"
        )  # fmt: skip
        self.job = self.hosts.sft(
            "submit", "run.yaml", *settings, "--address", self.hosts.address, cwd=self.desk, log=self.log
        )

    def everywhere(self, words):
        """Processes of the cluster with these words in their command lines, in an order of their own."""
        machines = [self.hosts.head, *self.hosts.workers.values()]
        return sorted((p for host in machines for p in host.processes(words)), key=lambda process: process.pid)


def host(run, dice):
    name = dice.choice(["left", "right"])
    run.hosts.workers[name].power_cut()
    time.sleep(dice.random() * 5)
    run.hosts.add(name)


def link(run, dice):
    """Longer than Ray waits for a node, or not; a host that was given up is set up anew, as an operator would."""
    name = dice.choice(["left", "right"])
    machine = run.hosts.workers[name]
    machine.unplug()
    time.sleep(dice.random() * 20)
    machine.plug()
    time.sleep(10)
    if not machine.processes("raylet/raylet"):
        machine.power_cut()
        run.hosts.add(name)


def rank(run, dice):
    signalled(run, dice, "RayTrainWorker", signal.SIGKILL)


def frozen(run, dice):
    signalled(run, dice, "RayTrainWorker", signal.SIGSTOP)


def dealer(run, dice):
    signalled(run, dice, "DealerActor", dice.choice([signal.SIGKILL, signal.SIGSTOP]))


def encoder(run, dice):
    signalled(run, dice, "ray::EncoderActor", dice.choice([signal.SIGKILL, signal.SIGSTOP]))


def driver(run, dice):
    """Or Ray Train's controller. Nobody is left who could start the ranks again, and the job has failed; but for one
    that had come to its end before."""
    signalled(run, dice, dice.choice(["dist-sft train", "TrainController"]), signal.SIGKILL)
    if run.job.wait(300) == 0:
        run.said.append("too late")
        assert max(steps(run.folder)) == STEPS, "a success without a driver"
    else:
        run.submit()


def signalled(run, dice, words, number):
    """Nobody, where nobody of that kind lives at this moment."""
    if victims := run.everywhere(words):
        victim = dice.choice(victims)
        run.said.append(f"{signal.Signals(number).name} to {victim.pid}")
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            run.said.append("which was gone")


FAULTS = (host, link, rank, frozen, dealer, encoder, driver)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_and_whenever_the_run_learns_the_same(desk, learned_alone, tmp_path, seed):
    dice = random.Random(seed)
    with cluster("left", "right") as hosts, (tmp_path / "log").open("w+") as log:
        run = Run(hosts, desk, tmp_path / "run", log)
        run.submit()
        for step in sorted(dice.sample(range(1, STEPS - 5), 2)):
            wait_for_step(run.folder, step, run.job)
            time.sleep(dice.random() * 0.5)
            fault = FAULTS[seed % len(FAULTS)] if not run.said else dice.choice(FAULTS)
            run.said.append(f"{fault.__name__} after step {step}")
            fault(run, dice)
        code = run.job.wait(600)
        print(*run.said, sep="\n")
        assert code == 0, "\n".join([*run.said, (tmp_path / "log").read_text()])
    assert close(run.folder, learned_alone) and one_wandb_run(run.folder), run.said
