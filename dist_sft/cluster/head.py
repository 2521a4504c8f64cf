"""A head that is gone: said in one line, before Ray aborts the process without one.

Ray tries for a minute to reach a head (its GCS) again, while ranks train on under nobody; then it ends the driver from
C++, and leaves processes of a Ray of the run's own behind. The watch ends it before that.
"""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import psutil

from dist_sft.core.errors import ClusterError

LOOK = 2.0
"""Seconds between two looks."""
OWN, OTHER = 6.0, 45.0
"""Seconds without a head after which it is lost: one of the run's own is started by nobody again; another may be, and
Ray itself gives up after 60."""


@contextlib.contextmanager
def watched_head(address: str | None, before: Sequence[Callable[[], None]]) -> Iterator[None]:
    """While the block lasts, a lost head ends this process with an error and exit code 1.

    address: of the cluster that was named; None: the Ray is the run's own.  before: called before the error is said.
    """
    stop = threading.Event()
    place = _place(address)
    watch = threading.Thread(
        target=_watch, args=(place, OWN if address is None else OTHER, stop, before, address is None), daemon=True
    )
    if place:
        watch.start()
    try:
        yield
    finally:
        stop.set()


def lost(address: str, own: bool, seconds: float) -> ClusterError:
    """What there is to say."""
    return ClusterError(
        f"the head of the Ray cluster has not answered for {seconds:.0f} s, and the run cannot go on without it",
        where="local Ray" if own else address,
        fix="run the same command again"
        + ("" if own else " when the cluster's head is there again")
        + ": it goes on from the newest whole checkpoint",
    )


def _place(address: str | None) -> tuple[str, int] | None:
    import ray

    found = address if address and address.startswith("ray://") else ray.get_runtime_context().gcs_address
    host, _, port = str(found).removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdecimal() else None


def _watch(
    place: tuple[str, int], limit: float, stop: threading.Event, before: Sequence[Callable[[], None]], own: bool
) -> None:
    failed = 0.0
    while not stop.wait(LOOK):
        try:
            socket.create_connection(place, timeout=LOOK).close()
            failed = 0.0
        except OSError:
            failed += LOOK
        if failed >= limit and not stop.is_set():
            _end(lost(f"{place[0]}:{place[1]}", own, failed), before)


def _end(error: ClusterError, before: Sequence[Callable[[], None]]) -> None:
    """End this process and those that it started, at once: whatever calls Ray from here on would wait for its abort."""
    for call in before:
        with contextlib.suppress(Exception):
            call()
    print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    sys.stdout.flush()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
    os._exit(1)
