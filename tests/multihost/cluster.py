"""A Ray cluster over several hosts, with token authentication: a head that trains nothing, hosts that do, and a desk.

The desk is a host without Ray, as a person's own machine is: from there runs are submitted.
"""

import contextlib
import subprocess
from dataclasses import dataclass, field

from tests.multihost.hosts import Host, Switch
from tests.ray_head import BIN, TOKEN, environment

START_UP, ATTEMPTS = 180, 3
"""Seconds for a node of Ray on a busy machine, and how often that is tried."""

VARIABLES = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""A lost node is noticed after some seconds, not half a minute."""


@dataclass
class Cluster:
    """workers: the hosts that train, by name."""

    switch: Switch
    head: Host
    desk: Host
    workers: dict[str, Host] = field(default_factory=dict)

    @property
    def address(self):
        """Of the dashboard."""
        return f"http://{self.head.address}:8265"

    def add(self, *names):
        """Turn on hosts that train, one worker on each; a name that was there before is the same host, empty."""
        for name in names:
            if name not in self.workers:
                self.workers[name] = self.switch.host(name)
            self.workers[name].start()
        _start_ray([(self.workers[name], f"--address={self.head.address}:6379", "--num-cpus=1") for name in names])

    def drain(self, name, seconds):
        """Give a host notice that it will be taken away, as a spot instance gets it."""
        done = self.workers[name].run(
            str(BIN / "ray"), "drain-node", "--address", f"{self.head.address}:6379", "--reason",
            "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away",
            "--deadline-remaining-seconds", str(seconds), **_with_token({}),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout

    def sft(self, *arguments, log=None, cwd="/", **variables):
        """A `dist-sft ARGUMENTS` that runs at the desk."""
        command = self.desk.command(str(BIN / "dist-sft"), *arguments, cwd=str(cwd), **_with_token(variables))
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def training(self):
        """Names of all hosts that hold a process of Ray Train's that trains."""
        hosts = [self.head, self.desk, *self.workers.values()]
        return [host.name for host in hosts if host.processes("RayTrainWorker")]


@contextlib.contextmanager
def cluster(*workers):
    """A head, a desk, and hosts that train; all of them gone afterwards."""
    with Switch() as switch, switch.host("head") as head, switch.host("desk") as desk:
        made = Cluster(switch, head, desk)
        _start_ray(
            [(head, "--head", "--port=6379", "--dashboard-host=0.0.0.0", "--dashboard-port=8265", "--num-cpus=0")]
        )
        made.add(*workers)
        yield made


def _start_ray(nodes):
    """Start a node of Ray on each host, all at once; on a new one where Ray's own 30 s for that were not enough."""
    for attempt in range(ATTEMPTS):
        starting = [(node, _ray_start(*node)) for node in nodes]
        nodes = [node for node, process in starting if process.wait(START_UP) != 0]
        if not nodes:
            return
        logs = [f"{host.name}: {(host.folder / 'ray.log').read_text()}" for host, *_ in nodes]
        for host, *_ in nodes if attempt + 1 < ATTEMPTS else ():
            host.power_cut()
            host.start()
    raise AssertionError("\n".join(logs))


def _ray_start(host, *arguments):
    command = (
        str(BIN / "ray"), "start", *arguments, f"--node-ip-address={host.address}", "--memory=4000000000",
        "--object-store-memory=100000000", "--disable-usage-stats",
    )  # fmt: skip
    with (host.folder / "ray.log").open("wb") as log:
        return subprocess.Popen(host.command(*command, **_with_token(VARIABLES)), stdout=log, stderr=log)


def _with_token(variables):
    names = ("PATH", "PYTHONPATH")
    ours = {name: value for name, value in environment().items() if name in names}
    return ours | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN} | variables
