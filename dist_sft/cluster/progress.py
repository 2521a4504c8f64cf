"""What the driver shows while the ranks train: it reads metrics.jsonl, which rank 0 writes."""

import contextlib
import threading
import time
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dist_sft.core.errors import TrackingError
from dist_sft.core.terminal import Terminal
from dist_sft.tracking.console import Console
from dist_sft.tracking.json_lines import Goodput
from dist_sft.tracking.records import Record, Start, Step, parsed


class Follower:
    """A progress bar and a line per record, for as long as the block lasts; at its end, however that came, the goodput.

    path     metrics.jsonl
    attempt  only what follows the start record of this attempt is shown
    every    steps per line
    """

    def __init__(self, path: Path, attempt: str, every: int) -> None:
        self.path, self.attempt, self.every = path, attempt, every
        self._offset, self._lines_read = 0, 0
        self._started = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Terminal(), transient=False)
        self._task = self._bar.add_task("starting", total=None)
        self._lines: Console | None = None

    def __enter__(self) -> "Follower":
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Show what is there by now, and no more."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # where storage fails, that is what the block ended with
            self._show_goodput()
        self._bar.stop()

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.2):
                self._poll()
            self._poll()
        except TrackingError as error:
            self._print(f"no more progress is shown: {error}")

    def _poll(self) -> None:
        """Show what is new. A file that has become shorter was cut back by a restart, and is read again."""
        if not self.path.exists():
            return
        if self.path.stat().st_size < self._offset:
            self._offset, self._lines_read, self._started = 0, 0, False
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")[:-1]
        first = self._lines_read + 1
        self._offset, self._lines_read = (
            self._offset + sum(len(line) + 1 for line in lines),
            self._lines_read + len(lines),
        )
        for record in parsed(lines, self.path, first):
            self._show(record)

    def _show_goodput(self) -> None:
        if self._started:
            share = Goodput.so_far(self.path, now := time.time()).share(now)
            self._print(f"goodput: {share:.0%} of the time since the first start went into steps that count")

    def _print(self, line: str) -> None:
        self._bar.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _show(self, record: Record) -> None:
        if isinstance(record, Start) and record.attempt == self.attempt:
            self._started = True
            self._lines = Console(record.steps, self.every, self._print)
            self._bar.update(self._task, description="training", total=record.steps, completed=record.step)
        elif self._started and self._lines:
            if isinstance(record, Step):
                self._bar.update(self._task, completed=record.step)
            self._lines.write(record)
