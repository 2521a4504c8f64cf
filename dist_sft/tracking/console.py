"""What a person reads while a run goes on."""

import time
from collections.abc import Callable, Sequence

from dist_sft.core.results import GroupLoss
from dist_sft.tracking.records import Checkpoint, End, Evaluation, Note, Record, Start, Step

GROUPS, NAME = 6, 24
"""Most groups of a kind on a line, those with most tokens; most characters of their names."""


class Console:
    """One line per `every` steps, and one per evaluation, checkpoint and note."""

    def __init__(self, steps: int, every: int, emit: Callable[[str], None]) -> None:
        self.steps, self.every, self.emit = steps, every, emit

    def write(self, record: Record) -> None:
        if isinstance(record, Step) and record.step % self.every and record.step != self.steps:
            return
        self.emit(f"{time.strftime('%H:%M:%S', time.localtime(record.time))} {describe(record, self.steps)}")

    def close(self, failed: bool) -> None:
        """The console stays open."""


def describe(record: Record, steps: int) -> str:
    """A record as one line for a person and for grep."""
    match record:
        case Step(loss=None) | Step(grad_norm=None):
            return f"step {record.step}/{steps}  no row of it can be learned: no update"
        case Step(loss=loss, grad_norm=norm):
            line = (
                f"step {record.step}/{steps}  loss {loss:.4f}  grad {norm:.2f}"
                f"  lr {record.learning_rate:.1e}  {_short(record.tokens_per_second_per_rank)} tok/s/rank"
                f"  balance {record.balance:.2f}  wait {record.waited:.1f}s"
            )
            return line + (f"  mfu {record.mfu:.1%}" if record.mfu is not None else "") + _by_group(record.groups)
        case Evaluation():
            line = f"eval step {record.step}/{steps}  loss {record.loss:.4f}  {_short(record.tokens)} tokens"
            return line + _by_group(record.groups)
        case Checkpoint():
            stood, whole = f"{record.stall:.1f} s", f"{record.seconds:.1f} s"
            return f"checkpoint of step {record.step}: training stalled for {stood}, whole after {whole}"
        case Start() | End() | Note():
            return record.text


def _by_group(groups: Sequence[GroupLoss]) -> str:
    """Loss and supervised tokens of each group, as in "  tag: math 1.2841 (4.0k), code 0.9120 (812)"; a kind with only
    one group says nothing."""
    text = ""
    for by in dict.fromkeys(group.by for group in groups):
        largest = sorted((group for group in groups if group.by == by), key=lambda group: -group.tokens)
        shown = [f"{_tail(group.name)} {group.loss:.4f} ({_short(group.tokens)})" for group in largest[:GROUPS]]
        more = f" and {len(largest) - GROUPS} more" if len(largest) > GROUPS else ""
        text += f"  {by}: {', '.join(shown)}{more}" if len(largest) > 1 else ""
    return text


def _tail(name: str) -> str:
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"
