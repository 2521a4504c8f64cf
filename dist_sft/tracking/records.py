"""The lines of metrics.jsonl: a frozen record each, written and read here and nowhere else.

tracker ─ Record ─> line of metrics.jsonl ─> Record ─> console, progress, a resumed run

The keys of a line are the fields of its record; a field that is None, or has nothing in it, and need not be there is
left out. `kind` says which record it is; of notes, those with the text of a start or an end of the ranks say more.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from dist_sft.core.errors import TrackingError
from dist_sft.core.files import json_lines, reading
from dist_sft.core.redact import scrubbed
from dist_sft.core.results import HeldOut, StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(StepResult):
    """One optimizer update, and what follows from it.

    time          of the record, seconds since 1970
    goodput       share of the time since the first start that went into steps which count; None in runs of before
    token_shares  of all tokens of the run so far, by "index name" of the source; None where there is one source
    dropped       rows that were dropped or cut so far, by reason; None where there are none
    lost          supervised tokens that are not learned with them
    mfu           FLOP/s over those that the devices can do; None where that is not known
    """

    time: float
    tokens_per_second_per_rank: float
    supervised_per_second: float
    goodput: float | None = None
    token_shares: dict[str, float] | None = None
    dropped: dict[str, int] | None = None
    lost: int | None = None
    mfu: float | None = None
    kind: Literal["step"] = "step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(HeldOut):
    """Loss on the held-out rows after `step` updates."""

    time: float
    step: int
    kind: Literal["eval"] = "eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of `step` updates is whole, `seconds` after it was begun; training stalled for `stall` of them."""

    time: float
    step: int
    stall: float
    seconds: float
    kind: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A start of the ranks, which go on after `step` of `steps` updates.

    attempt    name of this start
    world      ranks
    attention  what computes it
    """

    time: float
    step: int
    text: Literal["start"] = "start"
    attempt: str
    steps: int
    world: int
    attention: str
    kind: Literal["note"] = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of training after `step` updates.

    ledger  rows that were dropped or cut, by reason; lost, token_shares, goodput: see Step
    """

    time: float
    step: int
    text: Literal["finished", "stopped early"]
    ledger: dict[str, int]
    lost: int
    token_shares: dict[str, float]
    goodput: float
    kind: Literal["note"] = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something else that a person should know."""

    time: float
    step: int
    text: str
    kind: Literal["note"] = "note"


Record = Step | Evaluation | Checkpoint | Start | End | Note
R = TypeVar("R", Step, Evaluation, Checkpoint, Start, End, Note)


def figures(record: Record) -> dict[str, Any]:
    """What a record says, by name, besides its kind and time."""
    optional = {field.name for field in fields(record) if field.default is not MISSING}
    return {
        name: value
        for name, value in asdict(record).items()
        if name not in ("kind", "time") and not (name in optional and value in (None, ()))
    }


def line(record: Record) -> bytes:
    """A record as a line of metrics.jsonl."""
    head = {"time": round(record.time, 3), "kind": record.kind, "step": record.step}
    return json.dumps(head | figures(record)).encode() + b"\n"


def shown(record: Record) -> Record:
    """A record as every sink gets it: what it says in words without secrets."""
    return replace(record, text=scrubbed(record.text)) if isinstance(record, Note) else record


def read(path: Path, kind: type[R]) -> list[R]:
    """The records of one kind in a file, in order; none where there is no file. Raises TrackingError."""
    return [record for record in parsed(whole_lines(path), path) if isinstance(record, kind)]


def whole_lines(path: Path) -> list[bytes]:
    """Without a last line that a crash has torn; none where there is no file. Raises StorageError."""
    with reading(path):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def parsed(lines: Iterable[bytes], path: Path, first: int = 1) -> Iterator[Record]:
    """The record of each line, without those that are damaged. first: number of the first of them in the file.

    Raises TrackingError at file:line for JSON that is no record.
    """
    return (record for _, _, record in numbered(lines, path, first))


def numbered(lines: Iterable[bytes], path: Path, first: int = 1) -> Iterator[tuple[int, bytes, Record]]:
    """As `parsed`, with the number and the text of each line."""
    for number, text, value in json_lines(lines, first):
        try:
            yield number, text, _RECORD.validate_python(value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(map(str, problem["loc"][1:]))
            raise TrackingError(
                f"no record of a run: {f'{key}: ' if key else ''}{problem['msg']}",
                where=f"{path}:{number}",
                fix="remove the line, or read the file with the version of dist-sft that wrote it",
            ) from None


def _which(found: Any) -> str | None:
    """The name of the class that a line is a record of."""
    kind, text = (found.get("kind"), found.get("text")) if isinstance(found, dict) else (None, None)
    if kind == "note":
        return {"start": "Start", "finished": "End", "stopped early": "End"}.get(str(text), "Note")
    return {"step": "Step", "eval": "Evaluation", "checkpoint": "Checkpoint"}.get(str(kind))


_RECORD: TypeAdapter[Record] = TypeAdapter(
    Annotated[
        Annotated[Step, Tag("Step")]
        | Annotated[Evaluation, Tag("Evaluation")]
        | Annotated[Checkpoint, Tag("Checkpoint")]
        | Annotated[Start, Tag("Start")]
        | Annotated[End, Tag("End")]
        | Annotated[Note, Tag("Note")],
        Discriminator(
            _which,
            custom_error_type="kind",
            custom_error_message="its kind is none of step, eval, checkpoint, note",
        ),
    ]
)
