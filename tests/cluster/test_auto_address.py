"""A Ray cluster on this machine that another user has started, or seems to have, is not joined."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from dist_sft.cluster.auto_address import started_here
from dist_sft.core.errors import ClusterError
from tests.command import DIST_SFT, without_work
from tests.ranks import ROOT

STRANGER = 65534
"""Another user: nobody."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user can be played by root alone")

FORGE = """
import os, socket, sys
os.setgroups([]); os.setgid({uid}); os.setuid({uid})
taken = socket.socket(); taken.bind(("127.0.0.1", 0)); taken.listen()
address = "127.0.0.1:%d" % taken.getsockname()[1]
if {write}:
    open({file!r}, "w").write(address)
sys.argv[:] = []
print(address, flush=True)
while True:
    connection, _ = taken.accept()
    print("connected", connection.recv(1000), flush=True)
"""


def raylet(address):
    """A process that looks like one of a cluster at an address."""
    words = ["raylet", "-c", "import time; time.sleep(99)", f"--gcs-address={address}"]
    return subprocess.Popen([sys.executable, "-c", f"import os; os.execv({sys.executable!r}, {words!r})"])


@pytest.fixture
def forged(monkeypatch):
    """A function: starts another user's listener, and returns (its process, the lines that it says, its address)."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        inside = Path(folder, "ray")
        inside.mkdir()
        for open_to_all in (Path(folder), inside):
            open_to_all.chmod(0o777)  # as Ray itself leaves them
        processes = []

        def start(write=True):
            code = FORGE.format(uid=STRANGER, file=str(inside / "ray_current_cluster"), write=write)
            process = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True)
            processes.append(process)
            said = [process.stdout.readline().strip()]
            threading.Thread(target=lambda: said.extend(process.stdout), daemon=True).start()
            return said, inside / "ray_current_cluster"

        yield start
        for process in processes:
            process.kill()
            process.wait()


@needs_root
@pytest.mark.parametrize("command", ["train", "preflight"])
def test_nothing_is_sent_to_the_cluster_that_another_user_names(forged, run, command, tmp_path):
    said, file = forged()
    assert file.stat().st_uid == STRANGER and file.read_text() == said[0]
    ended = subprocess.run(
        [DIST_SFT, command, run.file, f"run.dir={tmp_path / 'run'}", "cluster.address=auto"], cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 1 and without_work(ended.stderr) == (
        f"error: cluster.address=auto: {file}, which names the cluster, was or can be written by another user\n"
        "  fix: name the cluster that you mean: cluster.address=HOST:PORT; or leave the address out to start a local "
        "Ray\n"
    )
    assert said == said[:1], "no connection was made"
    host, _, port = said[0].partition(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(b"hello")
    while len(said) == 1:
        pass
    assert "connected" in said[1], "it would have been seen"


@needs_root
def test_neither_the_file_nor_the_port_of_another_user_is_trusted(forged):
    said, file = forged(write=False)
    with pytest.raises(ClusterError, match="ray start has started no cluster on this machine"):
        started_here()
    file.write_text(said[0])
    with pytest.raises(ClusterError, match=rf"names {said[0]}, and no process of a Ray of yours there"):
        started_here()
    node = raylet(said[0])
    try:
        with pytest.raises(ClusterError, match=f"user {STRANGER} listens at {said[0]}, where a Ray of yours was"):
            while True:
                try:
                    started_here()
                except ClusterError as error:
                    if "no process" not in str(error):  # it has not become a raylet yet
                        raise
    finally:
        node.kill()
        node.wait()
    file.chmod(0o666)
    with pytest.raises(ClusterError, match="was or can be written by another user"):
        started_here()
    file.unlink()
    file.symlink_to("/etc/hostname")
    with pytest.raises(ClusterError, match="cannot be read"):
        started_here()
    assert said == said[:1]


def test_a_cluster_of_ones_own_is_found(forged, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        node = raylet(address)
        try:
            Path(os.environ["RAY_TMPDIR"], "ray", "ray_current_cluster").write_text(address)
            Path(os.environ["RAY_TMPDIR"], "ray", "ray_current_cluster").chmod(0o644)
            while True:
                try:
                    assert started_here() == address
                    break
                except ClusterError as error:
                    if "no process" not in str(error):
                        raise
        finally:
            node.kill()
            node.wait()
