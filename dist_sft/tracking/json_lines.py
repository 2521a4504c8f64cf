"""metrics.jsonl, which everything else can be drawn from, and what a resumed run takes from it."""

from dataclasses import dataclass
from pathlib import Path

from dist_sft.core.files import atomic, missing_lines, writing
from dist_sft.tracking.records import (
    Checkpoint,
    Evaluation,
    Record,
    Start,
    Step,
    line,
    numbered,
    parsed,
    read,
    whole_lines,
)


class JsonLines:
    """metrics.jsonl: one record per line, in the order of steps.

    A run that resumes at `step` first forgets what it will do again, so that every step stands there once. When it was
    started it never forgets.

    damaged  what to tell of lines that could not be read, and of checkpoints that are gone; None where there are none
    """

    def __init__(self, path: Path, step: int) -> None:
        """Raises TrackingError for a line that is no record."""
        lines = whole_lines(path)
        whole = list(numbered(lines, path))
        with writing(path), atomic(path) as file:
            file.writelines(text for _, text, record in whole if _stays(record, step))
        self.damaged = missing_lines(path, (number for number, _, _ in whole), len(lines))
        saved = [record.step for _, _, record in whole if isinstance(record, Checkpoint)]
        if saved and not step:
            gone = f"the checkpoint of step {max(saved)} is gone: the run begins again"
            self.damaged = f"{self.damaged}; {gone}" if self.damaged else gone
        self.path, self._file = path, path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        with writing(self.path):
            self._file.write(line(record))

    def close(self, failed: bool) -> None:
        self._file.close()


def tokens_so_far(path: Path, step: int, sources: int) -> list[int]:
    """Tokens of each source in the steps up to `step`."""
    steps = [record.source_tokens for record in read(path, Step) if record.step <= step] if step else []
    return [sum(tokens[source] for tokens in steps) for source in range(sources)]


@dataclass
class Goodput:
    """Share of the time since the run was first started that went into steps which count; the rest went into starts,
    evaluation, waiting for checkpoints, outages, and steps that were lost and done again.

    began   when it was first started, as time.time() says
    useful  seconds of the steps that count, up to now
    """

    began: float
    useful: float = 0.0

    @classmethod
    def so_far(cls, path: Path, now: float) -> "Goodput":
        """Of a run that is started, or looked at, now."""
        records = list(parsed(whole_lines(path), path))
        began = min((record.time for record in records if isinstance(record, Start)), default=now)
        return cls(began, sum(record.seconds for record in records if isinstance(record, Step)))

    def share(self, now: float) -> float:
        return self.useful / max(now - self.began, 1e-9)


def _stays(record: Record, step: int) -> bool:
    """Whether a run that resumes at `step` will not do it again: at step 0 it evaluates again, but keeps its notes."""
    return record.step <= step and (step > 0 or not isinstance(record, Step | Evaluation | Checkpoint))
