"""metrics.jsonl, which everything else can be drawn from."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_sft.core.files import atomic, writing


class JsonLines:
    """metrics.jsonl: one record per line, in the order of steps.

    A run that resumes at `step` first forgets what it will do again, so that every step stands there once. When it was
    started it never forgets.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in _whole_lines(path) if _stays(json.loads(line), step)]
        with writing(path), atomic(path) as file:
            file.writelines(kept)
        self.path, self._file = path, path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            self._file.write(json.dumps({"time": round(time.time(), 3), **record}).encode() + b"\n")

    def close(self, failed: bool) -> None:
        self._file.close()


def tokens_so_far(path: Path, step: int, sources: int) -> list[int]:
    """Tokens of each source in the steps up to `step`."""
    steps = [r["source_tokens"] for r in records_in(path, "step") if r["step"] <= step] if step else []
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
        starts = [r["time"] for r in records_in(path, "note") if r["text"] == "start"]
        return cls(min(starts, default=now), sum(r["seconds"] for r in records_in(path, "step")))

    def share(self, now: float) -> float:
        return self.useful / max(now - self.began, 1e-9)


def records_in(path: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind: "step", "eval", "checkpoint" or "note"; none where there is no file."""
    return [record for line in _whole_lines(path) if (record := json.loads(line))["kind"] == kind]


def _stays(record: dict[str, Any], step: int) -> bool:
    """Whether a run that resumes at `step` will not do it again: at step 0 it evaluates again, but keeps its notes."""
    return record["step"] <= step and (step > 0 or record["kind"] == "note")


def _whole_lines(path: Path) -> list[bytes]:
    return (
        [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
    )
