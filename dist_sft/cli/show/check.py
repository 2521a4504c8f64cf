"""What `dist-sft check` found."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from dist_sft.chat.fields import told
from dist_sft.commands.check import CheckReport
from dist_sft.core.terminal import Terminal
from dist_sft.estimate import advice
from dist_sft.estimate.memory import Memory
from dist_sft.proofs.proof import Proof


def show(report: CheckReport, console: Terminal) -> None:
    """A line per finding; of the rows that are dropped the first three."""
    lines = list(_figures(report))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        console.print(f"{name:>{width}}  {value}", highlight=False, markup=False, soft_wrap=True)
    if report.dropped:
        console.print(f"{len(report.dropped)} of these rows are dropped or cut:", highlight=False)
        for line in report.dropped[:3]:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    _, question = told(report.told.unread)
    for line in (*report.warnings, *report.told.of_texts(), *(line for line in (question, report.advice) if line)):
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for line in advice.lines(report.tuning):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if report.proofs:
        console.print(_table(report.proofs))


def _figures(report: CheckReport) -> Iterator[tuple[str, object]]:
    """Name and value of each line."""
    yield from ((f"rows of {name}", rows) for name, rows in report.rows.items())
    if report.share is not None:
        yield "held out of these", f"{report.share} by eval.share, which are not trained"
    yield from report.masks.lines()
    if report.told.unread:
        yield "keys not read", told(report.told.unread)[0]
    yield "export stops on", ", ".join(report.stops)
    yield "steps", report.steps
    if report.preset:
        yield "preset", report.preset
    yield "zero stage", report.zero_stage
    yield "supervised share", f"{report.supervised_share:.1%}"
    yield "longest", report.longest
    yield "micro steps", report.micro_steps
    yield "balance", f"{report.balance:.3f} (time over perfect)"
    yield "fill", f"{report.fill:.0%} of packs"
    if report.held_out:
        by_name = ", ".join(f"{name} {rows}" for name, rows in report.held_out.items())
        yield "held out rows", by_name if len(report.held_out) > 1 else sum(report.held_out.values())
    yield "memory per rank", _memory(report.memory)


def _memory(memory: Memory) -> str:
    gib = {name: f"{size / 2**30:.2g} GiB" for name, size in asdict(memory).items() if size}
    parts = ", ".join(f"{name} {size}" for name, size in gib.items() if name not in ("host", "early"))
    on_host = f"; {gib['host']} on the host" if "host" in gib else ""
    return f"{memory.device / 2**30:.2g} GiB ({parts}){on_host}, estimated"


def _table(proofs: Sequence[Proof]) -> Table:
    """For a person."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (("proof", "left"), ("", "left"), ("figure", "right"), ("limit", "right"), ("on", "left")):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    marks = {True: "[green]holds[/]", False: "[red]fails[/]", None: "[yellow]not tried[/]"}
    for proof in proofs:
        figure, limit = ("" if value is None else f"{value:.1e}" for value in (proof.figure, proof.limit))
        shown.add_row(proof.name, marks[proof.holds], figure, limit, Text(proof.detail))
    return shown
