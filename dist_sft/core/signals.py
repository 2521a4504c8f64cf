"""What ends a command from outside: Ctrl-C, SIGTERM (a scheduler), SIGHUP (a terminal that closes).

Each raises `Stopped` in the main thread, once: what follows is the way out, which a second signal does not cut short.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}
"""What a command says in the end, by the signal."""


class Stopped(KeyboardInterrupt):
    """A signal ends the command."""


class Stop:
    """The handler of this process.

    first  number of the signal that came; None before
    held   blocks that are not to be cut in two, see `whole`
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.held = 0

    @property
    def line(self) -> str:
        """What the command says in the end."""
        assert self.first is not None
        return ENDED[signal.Signals(self.first)]

    def __call__(self, number: int, _: FrameType | None) -> None:
        if self.first is None:
            self.first = number
            if not self.held:
                raise Stopped


_current: Stop | None = None


def arm() -> None:
    """Until `stopping` begins, and after it: a signal ends this process with its line and its exit code, at once."""
    _listen(_end)


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Inside the block signals raise `Stopped`, but those that this process was told to ignore (nohup)."""
    global _current
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = _listen(stop)
    _current = stop
    try:
        yield stop
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if stop.first is not None and handler is _end else handler)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """A block that no signal cuts in two: it raises `Stopped` at its end. Handlers that libraries set are unset."""
    stop = _current
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    began, handlers = stop.first, {number: signal.getsignal(number) for number in ENDED}
    stop.held += 1
    try:
        yield
    finally:
        stop.held -= 1
        for number, handler in handlers.items():
            signal.signal(number, handler)  # in any case: what a library sets from C++ Python does not see
    if began is None and stop.first is not None and not stop.held:
        raise Stopped


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Inside the block signals wait, and so they do for ever in threads that are started there.

    For a library that sets a handler from C++, which would abort. Processes inherit what is blocked: see `unblocked`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in ENDED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(ENDED))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblocked(call: Callable[[], None] | None) -> Callable[[], None]:
    """For a new process, what it calls before it begins (`preexec_fn`): signals reach it again."""

    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(ENDED))
        if call is not None:
            call()

    return begin


def _listen(handler: "signal._HANDLER") -> dict[int, "signal._HANDLER"]:
    """Set a handler for the signals that are not ignored. Returns those that were there."""
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in ENDED}
    for number, was in before.items():
        if was is not signal.SIG_IGN:
            signal.signal(number, handler)
    return {number: was for number, was in before.items() if was is not signal.SIG_IGN}


def _end(number: int, _: FrameType | None) -> None:
    os.write(2, f"{ENDED[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)
