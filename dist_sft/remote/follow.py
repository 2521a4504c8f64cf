"""Follow the log of a job to its end, through lost connections: each character is shown once, and none is left out.

The log only grows, and a connection begins with its first character: what was shown before is skipped.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from dist_sft.core.errors import ClusterError
from dist_sft.remote.jobs import Job, Jobs, Unreachable

QUIET = 30.0
"""Seconds without a word after which the connection is made anew: a dead one looks like a job that is quiet."""

PAUSE = 1.0
"""Seconds between attempts to connect."""

LAST_WORDS = 5
"""Attempts to get the end of the log of a job that has ended."""


class LogFollower:
    """Shows what a job writes.

    write    gets the log, piece by piece
    say      gets what there is to say about the connection
    patience seconds without any answer of the cluster after which it is given up
    """

    def __init__(
        self, jobs: Jobs, job_id: str, write: Callable[[str], None], say: Callable[[str], None], patience: float
    ) -> None:
        self.jobs, self.job_id, self.write, self.say, self.patience = jobs, job_id, write, say, patience
        self._shown = 0
        self._lost_at: float | None = None

    def follow(self) -> Job:
        """Return when the job has ended, and all of its log was shown.

        Raises ClusterError where the cluster is silent for too long, or knows the job no more.
        """
        while True:
            with contextlib.suppress(Unreachable):
                asyncio.run(self._listen())
            try:
                job = self.jobs.get(self.job_id)
            except Unreachable as error:
                self._lost(error)
            else:
                self._found()
                if job.ended:
                    self._show_last_words()
                    return job
            time.sleep(PAUSE)

    async def _listen(self) -> None:
        """Show what comes, until the connection ends or is quiet."""
        at = 0
        async with contextlib.aclosing(self.jobs.tail(self.job_id)) as stream:
            while True:
                try:
                    text = await asyncio.wait_for(anext(stream), QUIET)
                except (StopAsyncIteration, TimeoutError):
                    return
                self._found()
                self._show(text, at)
                at += len(text)

    def _show_last_words(self) -> None:
        """The connection may have broken off before them. They lie on the job's own node, which may be gone."""
        for attempt in range(LAST_WORDS):
            try:
                self._show(self.jobs.log(self.job_id), 0)
                return
            except Unreachable as error:
                if attempt == LAST_WORDS - 1:
                    self.say(f"the end of the log cannot be had: {error.what}")
            time.sleep(PAUSE)

    def _show(self, text: str, at: int) -> None:
        """`text` stands in the log from character `at` on."""
        new = text[max(0, self._shown - at) :]
        if new:
            self.write(new)
            self._shown = at + len(text)

    def _lost(self, error: Unreachable) -> None:
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            self.say(f"the connection is lost ({error.what}); trying again for {self.patience:.0f} s. The job goes on.")
        elif now - self._lost_at > self.patience:
            raise ClusterError(
                f"no answer for {self.patience:.0f} s ({error.what}); the job may well go on",
                where=error.where,
                fix=f"follow it again: {command('logs --follow', self.job_id, self.jobs.address)}",
            ) from error

    def _found(self) -> None:
        if self._lost_at is not None:
            self._lost_at = None
            self.say("connected again")


def stop(jobs: Jobs, job_id: str, timeout: float = 60) -> Job:
    """Stop a job, and return when it has ended; at once, if it has. Raises ClusterError after `timeout` seconds."""
    jobs.stop(job_id)
    deadline = time.monotonic() + timeout
    while not (job := jobs.get(job_id)).ended:
        if time.monotonic() > deadline:
            fix = f"look again: {command('status', job_id, jobs.address)}"
            raise ClusterError(
                f"the job was told to stop, and has not ended after {timeout:.0f} s", where=job_id, fix=fix
            )
        time.sleep(0.3)
    return job


def how_to_go_on(job_id: str, address: str) -> str:
    """A line for each thing that one may do with a job."""
    return "\n".join(f"  {command(verb, job_id, address)}" for verb in ("logs --follow", "status", "stop"))


def command(verb: str, job_id: str, address: str) -> str:
    """What to type to do something with a job."""
    return f"dist-sft job {verb} {job_id} --address {address}"
