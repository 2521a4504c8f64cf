"""What can go wrong, for a person to read: what, where, and how to mend it.

    SftError
    ├── ConfigError       the run file, an override, or the DeepSpeed JSON
    ├── DataError         a file that cannot be read, an empty data set
    │   └── RowError      one row: bad JSON, a wrong role, a mask that cannot be proved
    ├── TemplateError     a chat template that cannot say what we must know
    ├── ModelError        a model or tokenizer that cannot be loaded or trained as asked
    ├── ClusterError      too few GPUs or CPUs, a stale build lock, a worker that died
    ├── CheckpointError   a checkpoint that cannot be written, found or trusted
    ├── StorageError      the run folder cannot be written
    │   └── StorageOutage     for a reason that may pass: a new start may mend it, as it may a ClusterError
    ├── TrainingError     a loss that is not finite, an engine that is not the one asked for, ranks with equal shares
    ├── TrackingError     W&B cannot be reached or refuses; a line of metrics.jsonl that is no record
    └── MissingExtra      an optional package that a command needs

An error crosses process borders (Ray, multiprocessing) as itself.
"""

from dist_sft.core.redact import scrubbed

LONGEST = 2000
"""Characters of what an error of a row says."""


def plainly(text: str, longest: int = LONGEST) -> str:
    """A text on one line, of a length that a person reads: what a row or a template says steers no terminal and forges
    no line of ours."""
    return printable(f"{text[:longest]}..." if len(text) > longest else text)


def printable(text: str, kept: str = "") -> str:
    """A text without letters that steer a terminal, which are spelled out; those in `kept` stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in kept else ascii(letter)[1:-1] for letter in text)


class Lines(str):
    """What an error says on several lines, each of which was made safe by whoever put them together."""

    __slots__ = ()


class SftError(Exception):
    """The user's fault or the world's, never ours: ours is an `assert`.

    what: one sentence, or `Lines`.  where: file:line, row, key, rank or node; may be empty.  fix: what to do; may be
    empty. Whatever they hold, they are said without secrets (see `core.redact`) and on one line each.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        what, where, fix = _sayable(what), _sayable(where), _sayable(fix)
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  fix: {self.fix}" if self.fix else head

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.fix)


def _sayable(text: str) -> str:
    """What an error may say: no secret, nothing that steers a terminal, and of a user's text no line of its own."""
    if isinstance(text, Lines):
        return Lines(printable(scrubbed(text), kept="\n\t"))
    return printable(scrubbed(text))


def _rebuild(kind: type[SftError], what: str, where: str, fix: str) -> SftError:
    return kind(what, where=where, fix=fix)


class ConfigError(SftError):
    """The run file, an override, or the DeepSpeed JSON."""


class DataError(SftError):
    """A file that cannot be read, or a data set with nothing in it."""


class RowError(DataError):
    """One row that cannot become a sample.

    reason is a short key under which the ledger counts it, e.g. "bad_json", "wrong_role", "nothing_supervised".
    What the row says in it is written plainly: what, where and fix are of one line each.
    lost is the number of supervised tokens that are not learned with it, 0 where that cannot be known.
    """

    def __init__(self, what: str, *, reason: str, where: str = "", fix: str = "", lost: int = 0) -> None:
        super().__init__(plainly(what), where=plainly(where), fix=plainly(fix))
        self.reason, self.lost = reason, lost

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_row, (type(self), self.what, self.reason, self.where, self.fix, self.lost)

    def at(self, where: str) -> "RowError":
        """The same error, with a place in front of the place that it already names."""
        return type(self)(
            self.what,
            reason=self.reason,
            where=f"{where}: {self.where}" if self.where else where,
            fix=self.fix,
            lost=self.lost,
        )

    def inside(self, where: str) -> "RowError":
        """The same error, without the place in front: as it is wherever else an equal row lies."""
        rest = self.where.removeprefix(where).removeprefix(": ") if self.where.startswith(where) else self.where
        return type(self)(self.what, reason=self.reason, where=rest, fix=self.fix, lost=self.lost)


def _rebuild_row(kind: type[RowError], what: str, reason: str, where: str, fix: str, lost: int) -> RowError:
    return kind(what, reason=reason, where=where, fix=fix, lost=lost)


class TemplateError(SftError):
    """A chat template that cannot render a row, or cannot say where the answers are."""


class ModelError(SftError):
    """A model or tokenizer that cannot be loaded, or not trained as asked."""


class ClusterError(SftError):
    """Too few GPUs or CPUs, a stale build lock, a worker that died."""


class CheckpointError(SftError):
    """A checkpoint that cannot be written, found or trusted."""


class StorageError(SftError):
    """The run folder cannot be written: a full disk, a read-only file system."""


class StorageOutage(StorageError):
    """The run folder, or a checkpoint, is out of reach for now: a network that fails, a server that starts anew."""


class TrainingError(SftError):
    """A loss that is not finite, an engine that is not the one asked for."""


class TrackingError(SftError):
    """W&B cannot be reached, or refuses; a line of metrics.jsonl that is no record."""


class MissingExtra(SftError):
    """An optional package that this needs is not installed."""
