"""A rendered RayJob on hosts in place of pods: its folders, its variables, its commands, its entrypoint."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from dist_sft.kubernetes.manifest import render
from dist_sft.run.opened import open_run
from dist_sft.tracking.records import Step, read
from tests.kubernetes.cases import ROOT
from tests.kubernetes.rehearsal import pods

hosts = pytest.importorskip("tests.multihost.hosts", reason="no hosts on one machine here")
pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(bool(hosts.why_not()), reason=str(hosts.why_not())),
]

STEPS = 30
BIN = Path(sys.executable).parent
DASHBOARD = ("--address", "http://127.0.0.1:8265")


@pytest.fixture
def claim(tiny_model, tiny_rows, tmp_path):
    """A folder in place of the claim: a model and rows."""
    folder = tmp_path / "claim"
    shutil.copytree(tiny_model, folder / "models" / "tiny")
    (folder / "data").mkdir()
    shutil.copy(tiny_rows, folder / "data" / "rows.jsonl")
    return folder


@pytest.fixture
def manifest(tiny_run, tmp_path):
    """The objects of a CPU run of two workers."""
    settings = tiny_run | {
        "run": {"name": "rehearsal", "dir": "runs/rehearsal"},
        "model": {"path": "models/tiny", "dtype": "float32", "neftune": {"alpha": 5}},
        "data": {"sources": ["data/rows.jsonl"], "context_length": 256},
        "train": tiny_run["train"] | {"steps": STEPS},
        "checkpoint": {"every": 10},
        "cluster": {"workers": 2, "gpus_per_worker": 0},
        "service": {"encoders": 1, "budget": 1 << 24},
        "deepspeed": {"zero_optimization": {"stage": 3}},
        "kubernetes": {
            "image": "registry.example.com/dist-sft:0.1.0",
            "head": {"cpus": 1, "memory": "2Gi", "shared_memory": "256Mi", "scratch": "4Gi"},
            "worker": {"memory": "2Gi", "shared_memory": "256Mi", "scratch": "4Gi"},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return render(open_run(path))


def image(inside):
    """The script `inside`, and around it what leaves of this machine only what the image has: Python, packages and the
    checkout, where every user may read them; no home, and nothing that can be written."""
    home, places = Path.home(), sorted({Path(sys.base_prefix), Path(sys.prefix), ROOT})
    built = home / ".cache" / "torch_extensions"  # else each pod compiles them, for minutes
    take = f"cp -a {built} /tmp/.cache/; find /tmp/.cache -name lock -delete; chmod -R a+rwX /tmp/.cache"
    return "\n".join([
        *(f"exec {number}< {place}" for number, place in enumerate(places, 10)),
        inside,
        f"if [ -d {built} ]; then mkdir /tmp/.cache; {take}; fi",
        f"mount -t tmpfs -o mode=755 tmpfs {home}",
        *(f"mkdir -p {place}; mount --no-canonicalize --bind /proc/self/fd/{number} {place}; "
          f"mount -o remount,bind,ro {place}" for number, place in enumerate(places, 10)),
        "mount -o remount,bind,ro /",
    ])  # fmt: skip


class Played:
    """A pod that a host plays."""

    def __init__(self, pod, host, claim, head):
        self.pod, self.host, self.head = pod, host, head
        done = host.run("bash", "-c", image(pod.set_up({"dist-sft": claim}, host.folder / "pod")))
        assert done.returncode == 0, done.stderr

    def command(self, *words):
        """Out here, what runs `words` in the pod: with its rights, its variables, KubeRay's and this machine's."""
        kuberay = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "made-by-the-operator",
            "RAY_ADDRESS": f"{self.head}:6379",
        }
        machine = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        variables = self.pod.variables | kuberay | machine
        given = (f"{name}={value}" for name, value in variables.items())
        return self.host.command(*self.pod.rights, "env", "-i", *given, *words)

    def run(self, *words, timeout=120):
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, check=False)

    def training(self):
        """The users of its processes that train."""
        found = set()
        for process in self.host.processes("RayTrainWorker"):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.add(process.uids().real)
        return found


@contextlib.contextmanager
def played(objects, claim):
    """Head and workers, with Ray started on each as KubeRay would."""
    with hosts.Switch() as switch, contextlib.ExitStack() as running:
        made = []
        for number, pod in enumerate(pods(objects)):
            host = running.enter_context(switch.host(f"{pod.component}{number}"))
            made.append(Played(pod, host, claim, made[0].host.address if made else host.address))
        for each in made:
            address = None if each is made[0] else f"{each.head}:6379"
            words = each.pod.ray_start(address, node_ip_address=each.host.address)
            started = each.run(*words, "--disable-usage-stats", timeout=180)
            assert started.returncode == 0, started.stdout + started.stderr
        yield made


def learned(claim):
    """The steps whose records are on the claim."""
    return [step.step for step in read(claim / "runs" / "rehearsal" / "metrics.jsonl", Step)]


def test_what_the_manifest_says_trains_a_model_to_its_end(manifest, claim, tmp_path):
    with played(manifest, claim) as everyone, (tmp_path / "log").open("w+") as log:
        head, worker, _ = everyone
        entrypoint = shlex.split(manifest[-1]["spec"]["entrypoint"])
        submit = ["ray", "job", "submit", *DASHBOARD, "--submission-id", "rehearsal", "--", *entrypoint]
        job = subprocess.Popen(head.command(*submit), stdout=log, stderr=log)
        training = set()
        while job.poll() is None:
            training |= {(each.host.name, user) for each in everyone for user in each.training()}
            time.sleep(0.5)
        assert job.returncode == 0, (tmp_path / "log").read_text()
        assert training == {("worker1", 1000), ("worker2", 1000)}
        assert learned(claim) == list(range(1, STEPS + 1))
        assert (claim / "runs" / "rehearsal" / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json").exists()
        followed = head.run("ray", "job", "logs", "--follow", *DASHBOARD, "rehearsal")  # as launchers/k8s_rayjob does
        assert followed.returncode == 0 and f"step {STEPS}/{STEPS}" in followed.stdout, followed.stderr
        stopped = worker.run(*worker.pod.stop, timeout=60)  # trains nothing any more: at once
        assert stopped.returncode == 0, stopped.stderr
