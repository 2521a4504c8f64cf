"""A real Ray head of the test's own, which asks for a token; and a line to it that can be cut."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.ranks import ROOT

BIN = Path(sys.executable).parent
ATTEMPTS = 3
TOKEN = "token-of-the-tests-0123456789abcdef"


@dataclass(frozen=True)
class Head:
    """address: of its dashboard.  client: environment of someone who has the token.  folder: its temporary files."""

    address: str
    client: dict[str, str]
    folder: Path

    def ask(self, path, body=None):
        """What the jobs API answers, asked without any code of ours or Ray's."""
        request = urllib.request.Request(
            f"{self.address}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())

    def start(self, job_id, command):
        """A job that is not ours."""
        self.ask("/api/jobs/", {"entrypoint": command, "submission_id": job_id})

    def job(self, job_id):
        return self.ask(f"/api/jobs/{job_id}")

    def wait_for(self, job_id, *statuses, timeout=120):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.HTTPError):
                if (job := self.job(job_id))["status"] in statuses:
                    return job
            time.sleep(0.2)
        raise AssertionError(f"job {job_id} did not become {statuses}")


def environment(**variables):
    """Of a process that finds this checkout first, and no cluster of anyone else's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN} | variables


@contextlib.contextmanager
def ray_head(cpus=2, **variables):
    """A head with ports and folders of its own; ended with all that it started, and nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="dsr", dir="/tmp"))  # a short path: names of sockets lie under it
    try:
        for _ in range(ATTEMPTS):
            process, head = _start(folder, cpus, variables)
            try:
                if _answers(head, process):
                    yield head
                    return
            finally:
                _end(process)
        raise AssertionError((folder / "head.log").read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder, cpus, variables):
    gcs, dashboard, agent, client = _free_ports(4)
    command = (
        BIN / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", f"--num-cpus={cpus}", f"--temp-dir={folder}",
        "--object-store-memory=100000000", "--disable-usage-stats",
    )  # fmt: skip
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(**variables), cwd=folder, start_new_session=True
        )
    return process, Head(f"http://127.0.0.1:{dashboard}", environment(), folder)


def _answers(head, process):
    """Wait for the dashboard. False where the head ended: someone else may have taken one of its ports."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            head.ask("/api/jobs/")
            return True
        time.sleep(0.3)
    return False


def _end(process):
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Line:
    """A TCP connection to `address` through a port of its own, until it is cut, hung up, or dies without a word."""

    def __init__(self, address):
        self.target = ("127.0.0.1", int(address.rpartition(":")[2]))
        (self.port,) = _free_ports(1)
        self.address = f"http://127.0.0.1:{self.port}"
        self._sockets = []
        self._listener = socket.socket()
        self._alive = threading.Event()
        self._alive.set()
        self.mend()

    def mend(self):
        self._listen(self._connect)

    def hang_up(self):
        """What a tunnel does whose far end is away: whoever is connected, or connects, is thrown out."""
        self._listen(_hear_and_close)

    def cut(self):
        """Nobody listens any more, and whoever was connected is thrown out."""
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._sockets.clear()  # and closed when its threads are through: one could read from a new one of its number

    def die(self):
        """What is sent by those who are connected now arrives nowhere. New connections are as before."""
        self._alive.clear()
        self._alive = threading.Event()
        self._alive.set()

    def _listen(self, receive):
        self.cut()
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        threading.Thread(target=_accept, args=(self._listener, receive), daemon=True).start()

    def _connect(self, near):
        far = socket.create_connection(self.target)
        self._sockets += [near, far]
        for one, other in ((near, far), (far, near)):
            threading.Thread(target=_pump, args=(one, other, self._alive), daemon=True).start()


def _accept(listener, receive):
    while True:
        try:
            near, _ = listener.accept()
        except OSError:
            return
        with contextlib.suppress(OSError):
            receive(near)


def _hear_and_close(near):
    with near:
        near.recv(65536)


def _pump(one, other, alive):
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            if alive.is_set():
                other.sendall(data)
    if not alive.is_set():
        return
    for each in (one, other):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
