"""Several hosts on one machine: network, pid, mount and uts namespaces, joined by a bridge.

    with Switch() as switch, switch.host("a") as a, switch.host("b") as b:
        a.run("ping", "-c1", b.address)
        b.power_cut()

Nothing here has a name that outlives it: a namespace goes with its last process, and the processes go with this one
(pdeathsig), even when it is killed. Each host has its own /tmp/ray, /dev/shm, /proc and host name; all else of the file
system is shared, as by storage that all nodes see. Needs root and iproute2.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

NETWORK = "10.77.0"
ORPHAN = ("setpriv", "--pdeathsig", "KILL")
"""Put in front of a command: it dies with whoever started it."""

FIRST_PROCESS = """
set -e
hostname "$NAME"
mkdir -p /tmp/ray
mount --bind "$FOLDER/ray" /tmp/ray
mount --bind "$HOSTS" /etc/hosts
mount -t tmpfs -o size=400m tmpfs /dev/shm
echo up
sleep infinity & wait
"""
"""What a host does all its life: as a bash, it also buries its orphans."""


@functools.cache
def why_not():
    """Why there can be no hosts here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux, for namespaces"
    if missing := [name for name in ("ip", "nsenter", "setpriv", "unshare") if not shutil.which(name)]:
        return f"needs {', '.join(missing)}: apt-get install iproute2 util-linux"
    tried = _quietly("unshare", "--net", "--pid", "--fork", "--mount", "--uts", "mount", "-t", "tmpfs", "tmpfs", "/mnt")
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Switch:
    """A bridge that hosts are plugged into. On leaving, everything that was started in it is gone."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="dist_sft_hosts_"))
        self.names = self.folder / "hosts"  # /etc/hosts of them all
        self.hosts = []
        self._process = None

    def __enter__(self):
        self._process = subprocess.Popen([*ORPHAN, "unshare", "--net", "sleep", "infinity"])
        _wait_until(lambda: _namespace(self._process.pid) != _namespace(os.getpid()))
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "bridge", "type", "bridge")
        self.ip("link", "set", "bridge", "up")
        return self

    def __exit__(self, *_):
        for host in self.hosts:
            host.power_cut()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def host(self, name):
        """A new host, not yet running; `with` starts it."""
        self.hosts.append(Host(self, name, len(self.hosts) + 1))
        known = {"localhost": "127.0.0.1"} | {host.name: host.address for host in self.hosts}
        self.names.write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        return self.hosts[-1]

    def ip(self, *arguments):
        """`ip ARGUMENTS` on the switch."""
        _do("nsenter", "-t", str(self._process.pid), "-n", "ip", *arguments)


class Host:
    """A machine: `start` turns it on, as new; `power_cut` ends everything on it, without a goodbye.

    pid   of its first process, as seen from outside; 0 while it is off
    """

    def __init__(self, switch, name, number):
        self.switch, self.name, self.number = switch, name, number
        self.address = f"{NETWORK}.{number}"
        self.folder = switch.folder / name
        self.pid = 0
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.power_cut()

    def start(self):
        assert self._process is None, f"{self.name} is running"
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "ray").mkdir(parents=True)
        variables = {"NAME": self.name, "FOLDER": str(self.folder), "HOSTS": str(self.switch.names)}
        new = ("unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc")
        self._process = subprocess.Popen(
            [*ORPHAN, *new, "bash", "-c", FIRST_PROCESS], env=os.environ | variables, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout.readline() == "up\n", f"{self.name} did not start"
        (first,) = psutil.Process(self._process.pid).children()
        self.pid = first.pid
        self._connect()

    def power_cut(self):
        if self._process is None:
            return
        if self.pid:  # the kernel ends all others before it lets go of this one, and unshare waits for it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        else:  # it did not come so far
            self._process.kill()
        self._process.wait(60)
        self._process.stdout.close()
        self._process, self.pid = None, 0

    def unplug(self):
        """The cable out: packets are lost, and nobody is told."""
        self.switch.ip("link", "set", self.port, "down")

    def plug(self):
        self.switch.ip("link", "set", self.port, "up")

    def command(self, *words, cwd="/", **variables):
        """What to run out here to have `words` run on this host, in its environment and these variables."""
        inside = ("nsenter", "-t", str(self.pid), "--net", "--pid", "--mount", "--uts")
        return [*inside, "env", "-C", cwd, *(f"{name}={value}" for name, value in variables.items()), *words]

    def run(self, *words, timeout=120, **options):
        """Run a command on this host to its end. options: cwd, and environment variables."""
        command = self.command(*map(str, words), **options)
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    def processes(self, words=""):
        """What runs here with `words` in its command line, as psutil sees it from outside: to suspend or kill."""
        here = _namespace(self.pid, "pid")
        return [p for p in psutil.process_iter() if here and _namespace(p.pid, "pid") == here and words in _title(p)]

    def sent(self):
        """Bytes that left by the cable."""
        line = next(text for text in self.run("cat", "/proc/net/dev").stdout.splitlines() if "eth0:" in text)
        return int(line.split(":")[1].split()[8])

    @property
    def port(self):
        """Name of its cable at the switch's end."""
        return f"port{self.number}"

    def _connect(self):
        self.switch.ip("link", "add", self.port, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        self.switch.ip("link", "set", self.port, "master", "bridge")
        self.switch.ip("link", "set", self.port, "up")
        for words in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"):
            _do("nsenter", "-t", str(self.pid), "-n", "ip", *words.split())


def _title(process):
    """What a process calls itself."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _namespace(pid, kind="net"):
    """Identity of a process's namespace; None where there is no such process."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None


def _wait_until(condition, timeout=10):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the namespace was not made"
        time.sleep(0.01)


def _do(*words):
    done = _quietly(*words)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


def _quietly(*words):
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
