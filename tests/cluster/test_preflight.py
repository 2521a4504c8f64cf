"""`dist-sft preflight`: every fault of a node of a real Ray cluster is found, and named with its cure.

Three nodes on this machine: a head, one that is sound, and one whose run.dir, shared memory, open files, packages,
clock, GPUs and network interface are not as they should be: in a mount namespace of its own, which takes root.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from dist_sft.cluster.preflight import network
from dist_sft.cluster.preflight.facts import look
from dist_sft.cluster.preflight.network import Listener
from dist_sft.cluster.preflight.run import _reduce, _room, _timed
from dist_sft.run.opened import open_run
from tests.multihost.hosts import Switch, why_not
from tests.ranks import ROOT

pytestmark = [
    pytest.mark.xdist_group("cluster"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts take root"),
]
RAY = Path(sys.executable).with_name("ray")


def free_port():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


def start_node(log, before, *options, **environment):
    """`ray start` in a mount and host-name namespace of its own, after some shell commands."""
    script = f"set -e; {before}; exec {shlex.join([str(RAY), 'start', *options, '--num-cpus', '1', '--block'])}"
    return subprocess.Popen(
        ["unshare", "--mount", "--uts", "bash", "-c", script],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def forged(tmp_path_factory):
    """What lies in front of the broken node's packages and programs."""
    folder = tmp_path_factory.mktemp("forged")
    metadata = folder / "torch-0.0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    (folder / "sitecustomize.py").write_text(  # of Ray's workers only: others wait for each other by the clock
        "import time\nreal = time.time\n"
        "if 'default_worker' in open('/proc/self/cmdline').read():\n    time.time = lambda: real() + 60\n"
    )
    driver = folder / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf 'NVIDIA One\\nNVIDIA One\\nNVIDIA Other\\n'\n")
    driver.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def cluster(forged, tmp_path_factory):
    """Address, the run.dir, and a function that takes the broken node away."""
    import ray

    run_dir, log = tmp_path_factory.mktemp("shared") / "run", tmp_path_factory.mktemp("log") / "nodes.txt"
    run_dir.mkdir()
    temporary = Path(tempfile.mkdtemp(prefix="pf", dir="/tmp"))
    address = f"127.0.0.1:{(port := free_port())}"
    keep = pytest.MonkeyPatch()
    keep.setenv("RAY_AUTH_MODE", "token")
    keep.setenv("RAY_AUTH_TOKEN", "a-token-of-this-test-0123456789abcdef")
    forget_authentication()
    small = ("--object-store-memory", "80000000")
    with log.open("wb") as out:
        head = start_node(out, "hostname head", "--head", "--port", str(port), *small,
                          "--node-ip-address", "127.0.0.1", "--include-dashboard", "false",
                          "--temp-dir", str(temporary))  # fmt: skip
        nodes = [head]
        try:
            wait_for(lambda: listening(port), log)
            join = ("--address", address, *small, "--node-ip-address", "127.0.0.1")
            ray.init(address=address, log_to_driver=False)
            nodes.append(start_node(out, "hostname sound", *join, "--resources", '{"trainer": 1}'))
            wait_for(lambda: alive() == 2, log)  # two that start at once would take the same name for a socket
            faults = (
                f"hostname broken; mount -t tmpfs -o size=1m tmpfs {run_dir}; "
                "mount -t tmpfs -o size=100m tmpfs /dev/shm; ulimit -n 3000"
            )
            nodes.append(start_node(
                out, faults, *join, "--num-gpus", "4", PYTHONPATH=f"{forged}:{os.environ.get('PYTHONPATH', '')}",
                PATH=f"{forged}:{os.environ['PATH']}", GLOO_SOCKET_IFNAME="nowhere0",
            ))  # fmt: skip
            wait_for(lambda: alive() == 3, log)
            yield address, run_dir, lambda: (end(nodes[2]), wait_for(lambda: alive() == 2, log))
        finally:
            ray.shutdown()
            for node in nodes:
                end(node)
            shutil.rmtree(temporary, ignore_errors=True)
            keep.undo()
            forget_authentication()


def forget_authentication():
    """Ray remembers in a process what the environment said at first."""
    from ray._raylet import AuthenticationTokenLoader, Config

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")


def alive():
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def listening(port):
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), timeout=1)):
        return True
    return False


def wait_for(condition, log, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        time.sleep(0.3)


FAULTS = {
    ("versions", "broken"): ("torch is 0.0.1 there, and 2.", "install torch 2."),
    ("clock", "broken"): ("its clock is 60 s ahead of that of the node that asks", "NTP"),
    ("disk", "broken"): ("1 MiB free in run.dir, and checkpoints take", "lower checkpoint.keep"),
    ("shm", "broken"): ("/dev/shm has 100 MiB, and 4.0 GiB are wanted", "--shm-size"),
    ("gpus", "broken"): ("Ray gives away 4 GPUs, and the driver (nvidia-smi) sees 3", "--num-gpus"),
    ("files", "broken"): ("a process may open 3000 files, and 4096 are wanted", "ulimit -n 65536"),
    ("storage", "broken"): ("cannot write 4 MiB into", "make room there"),
    ("all-reduce", "broken"): ("no gloo all-reduce with the other nodes", "GLOO_SOCKET_IFNAME"),
}


def test_every_fault_of_a_node_is_named_with_its_cure(sft, run, cluster, monkeypatch):
    address, run_dir, _ = cluster
    monkeypatch.setattr(network, "PATIENCE", 20)
    ended = sft("preflight", run.file, f"cluster.address={address}", f"run.dir={run_dir}", "--json")
    assert ended.code == 1, ended.error
    (found,) = ended.values
    assert not found["ok"]
    for (check, node), (what, fix) in FAULTS.items():
        named = [one for one in found["findings"] if one["check"] == check and one["where"].startswith(f"{node} (")]
        assert any(what in one["what"] and fix in one["fix"] for one in named), (check, found["findings"])
        assert named[0]["what"] in ended.error and named[0]["fix"] in ended.error
    other = [one["what"] for one in found["findings"] if one["check"] == "gpus"]
    assert any("a NVIDIA Other, and most GPUs are NVIDIA One" in what for what in other)
    unseen = [one for one in found["findings"] if "wrote is not there" in one["what"]]
    assert {one["where"].split()[0] for one in unseen} == {"broken"}
    assert all("one storage for all nodes" in one["fix"] for one in unseen) and len(unseen) == 2
    blamed = {one["where"].split()[0] for one in found["findings"] if one["check"] not in ("all-reduce", "answers")}
    assert blamed == {"broken"}
    assert not list(run_dir.iterdir())


def test_training_does_not_start_on_such_a_cluster(refused, run, cluster):
    address, run_dir, _ = cluster
    error = refused("train", run.file, f"cluster.address={address}", f"run.dir={run_dir}")
    assert "torch is 0.0.1 there" in error and "cannot write 4 MiB" in error
    assert "all-reduce" not in error
    assert {path.name for path in run_dir.iterdir()} == {".dist-sft", ".lock"}


def test_only_nodes_that_could_hold_a_worker_are_asked(sft, run, cluster):
    address, run_dir, _ = cluster
    options = (f"cluster.address={address}", f"run.dir={run_dir}", "cluster.resource=trainer", "--json")
    ended = sft("preflight", run.file, *options)
    assert ended.code == 0, ended.error
    assert [node["name"].split()[0] for node in ended.values[0]["nodes"]] == ["sound"]


def test_files_that_a_node_may_write_and_not_remove_are_found(sft, run, cluster, tmp_path):
    address, _, _ = cluster
    folder = tmp_path / "run" / ".preflight"
    folder.mkdir(parents=True)
    options = (f"cluster.address={address}", f"run.dir={folder.parent}", "cluster.resource=trainer", "--json")
    subprocess.run(["chattr", "+a", folder], check=True)  # append only: files can be made there, and stay
    try:
        (found,) = sft("preflight", run.file, *options).values
    finally:
        subprocess.run(["chattr", "-a", folder], check=True)
    (finding,) = found["findings"]
    assert finding["what"] == f"cannot remove its file from {folder.parent}: Operation not permitted"
    assert finding["where"].startswith("sound (") and "give the right to" in finding["fix"]


def test_a_sound_cluster_passes_with_its_bandwidth(sft, run, cluster):
    address, run_dir, remove_broken = cluster
    remove_broken()
    arguments = ("preflight", run.file, f"cluster.address={address}", f"run.dir={run_dir}")
    ended = sft(*arguments, "--json")
    assert ended.code == 0, ended.error
    (found,) = ended.values
    assert found["ok"] and not found["findings"]
    assert sorted(node["name"].split()[0] for node in found["nodes"]) == ["head", "sound"]
    assert all(one["gigabytes"] > 0.01 for one in found["all_reduce"])
    shown = sft(*arguments)
    assert shown.code == 0 and shown.out.rstrip().endswith("ok")
    assert "head (" in shown.out and "sound (" in shown.out and "GB/s" in shown.out


def test_a_node_that_is_lost_while_it_is_looked_at_is_a_finding(cluster):
    """Lost after it has looked at itself: before it tells the time, or where all others are to meet."""
    import ray

    _, run_dir, remove_broken = cluster
    remove_broken()
    (gone,) = [look(node["NodeID"], "127.0.0.1", str(run_dir)) for node in ray.nodes() if not node["Alive"]]
    timed, (finding,) = _timed([gone])
    assert timed == [] and finding.where == gone.name and finding.what.startswith("it could not tell the time: ")
    reduced, (finding,) = _reduce([gone, gone], "gloo")
    assert [one.error for one in reduced] == ["no answer"] * 2 and finding.what.startswith("it could not open a port: ")


@pytest.mark.skipif(bool(why_not()), reason=str(why_not()))
def test_a_port_that_is_silent_is_given_up_after_a_while():
    """Between two hosts: packets are dropped, as by a firewall, and nobody is told."""
    listen = "from dist_sft.cluster.preflight.network import Listener; here = Listener(sys.argv[1])"
    wait = f"import sys, time; {listen}; print(here.port(), flush=True); time.sleep(60)"
    knock = f"import sys; {listen}; print(here.reach([(sys.argv[2], int(sys.argv[3]))], 1.0))"
    with Switch() as switch, switch.host("a") as a, switch.host("b") as b:
        path = str(ROOT)
        waiting = subprocess.Popen(
            a.command(sys.executable, "-c", wait, a.address, PYTHONPATH=path), stdout=subprocess.PIPE, text=True
        )
        port = waiting.stdout.readline().strip()
        knocking = (sys.executable, "-c", knock, b.address, a.address, port)
        assert b.run(*knocking, PYTHONPATH=path).stdout == "['']\n"
        a.unplug()
        assert b.run(*knocking, PYTHONPATH=path).stdout == "['timed out']\n"
        a.power_cut()
        waiting.communicate(timeout=30)


def test_a_port_that_does_not_answer_is_told_from_one_that_does():
    here = Listener("127.0.0.1")
    refused = free_port()
    assert here.reach([("127.0.0.1", here.port()), ("127.0.0.1", refused)], 1.0) == ["", "Connection refused"]


def test_no_node_with_enough_gpus_is_said_at_once(refused, run, cluster):
    address, run_dir, _ = cluster
    error = refused("preflight", run.file, f"cluster.address={address}", f"run.dir={run_dir}",
                    "cluster.cpus_per_worker=64", "cluster.resource=trainer")  # fmt: skip
    assert "no node of the cluster has what a worker needs: 64 CPU, 1 trainer" in error and "ray status" in error


def test_a_url_that_is_not_the_same_storage_for_all_nodes_is_found(sft, run, cluster):
    address, run_dir, _ = cluster
    options = (f"cluster.address={address}", f"run.dir={run_dir}", "checkpoint.url=memory://runs/x")
    (found,) = sft("preflight", run.file, *options, "--json").values
    said = [one for one in found["findings"] if one["what"].startswith("memory://runs/x: a file that ")]
    assert said and all(one["fix"].startswith("checkpoint.url must be one storage for all nodes") for one in said)
    (found,) = sft("preflight", run.file, *options[:2], "checkpoint.url=nothing://x", "--json").values
    (what,) = {one["what"] for one in found["findings"] if one["check"] == "storage"}
    assert what.startswith("cannot write 4 MiB into nothing://x: nothing:// cannot be reached")


LOOK = """
import json, sys
from pathlib import Path
from dist_sft.cluster.preflight.facts import look
from dist_sft.cluster.preflight.judge import judge

def said(room):
    facts = look("node", "127.0.0.1", sys.argv[1])
    return [found.what for found in judge([facts], facts.versions, {}, room) if found.check == "disk"]

size, last = float(sys.argv[2]), Path(sys.argv[1], "checkpoints", "step_00000003")
found = [said(4 * size), said(5 * size)]
last.rename(last.with_suffix(".bad"))
print(json.dumps([*found, said(4 * size)]))
"""


def test_a_run_that_goes_on_is_asked_for_no_more_room_than_one_that_begins(run, tmp_path):
    """On a disk of its own, with room for four checkpoints and a half: three are there, and one will be written.

    One that was put aside stays there, and is in the way.
    """
    size = _room(open_run(run.file, ["checkpoint.keep=3"])) / 4
    disk, checkpoints = tmp_path / "disk", tmp_path / "disk" / "run" / "checkpoints"
    disk.mkdir()
    script = f"""
        set -e; mount -t tmpfs -o size={int(4.5 * size)} tmpfs {disk}; mkdir -p {checkpoints}
        for step in 1 2 3; do cp -r {run.dir}/checkpoints/step_00000001 {checkpoints}/step_0000000$step; done
        exec {shlex.join([sys.executable, "-c", LOOK, str(disk / "run"), str(size)])}
    """
    ended = subprocess.run(["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    fits, one_too_many, quarantine = json.loads(ended.stdout)
    assert fits == [] and len(quarantine) == 1
    assert re.fullmatch(
        r"\d+ MiB free in run.dir, and checkpoints take \d+ MiB, of which \d+ MiB are there", *one_too_many
    )
