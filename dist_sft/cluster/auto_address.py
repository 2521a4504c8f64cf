"""Whose the Ray cluster is that runs on this machine: a run joins none of another user's unless it names it.

`ray start` leaves the cluster's address in a file of Ray's temporary folder, into which every user of the machine may
write; whoever joins sends the cluster's token to that address. So file, processes and the open port must be ours.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from dist_sft.core.errors import ClusterError
from dist_sft.run.resources import RAY_STARTED

LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""


def started_here() -> str:
    """Address of the cluster that this user, or root, has started on this machine, as host:port.

    Raises ClusterError where there is none, or one of someone else.
    """
    folder = os.environ.get("RAY_TMPDIR")
    file = Path(folder, "ray", RAY_STARTED.name) if folder else RAY_STARTED
    if not os.path.lexists(file):
        raise ClusterError(
            f"ray start has started no cluster on this machine: there is no {file}",
            where="cluster.address=auto",
            fix="start one with ray start, name one (cluster.address=HOST:PORT), or leave the address out to start a "
            "local Ray",
        )
    address = _trusted(file)
    if address not in _addresses():
        raise _refused(f"{file} names {address}, and no process of a Ray of yours there is on this machine")
    if strangers := _listeners(address) - _ours():
        raise _refused(f"user {min(strangers)} listens at {address}, where a Ray of yours was")
    return address


def _refused(what: str) -> ClusterError:
    return ClusterError(
        what,
        where="cluster.address=auto",
        fix="name the cluster that you mean: cluster.address=HOST:PORT; or leave the address out to start a local Ray",
    )


def _ours() -> set[int]:
    """Users who may do anything in our name: ourselves, and root."""
    return {os.geteuid(), 0}


def _trusted(file: Path) -> str:
    """What a file of `ray start` says, if nobody else can have written it."""
    descriptor = -1
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid not in _ours() or about.st_mode & 0o022:
            raise _refused(f"{file}, which names the cluster, was or can be written by another user")
        return os.read(descriptor, 1000).decode(errors="replace").strip()
    except OSError as error:
        raise _refused(f"{file}, which names the cluster, cannot be read: {error.strerror}") from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _addresses() -> Iterator[str]:
    """The clusters that processes of ours on this machine belong to."""
    for process in psutil.process_iter(["cmdline", "uids"]):
        words, uids = process.info["cmdline"] or [], process.info["uids"]
        if uids and uids.real in _ours() and words and Path(words[0]).name in ("raylet", "gcs_server"):
            for word in words:
                name, _, value = word.partition("=")
                if name.lstrip("-").replace("_", "-") == "gcs-address" and value:
                    yield value


def _listeners(address: str) -> set[int]:
    """Users whose sockets on this machine take connections at a port of this address; none where it is elsewhere."""
    port = int(address.rpartition(":")[2]) if address.rpartition(":")[2].isdecimal() else -1
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(int(fields[7]))
    return found
