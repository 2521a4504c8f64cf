"""A plan for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from dist_sft.commands.planning.changes import Adjustment, recommended
from dist_sft.commands.planning.machine import RESERVED
from dist_sft.commands.planning.plan import Plan
from dist_sft.core.terminal import Terminal
from dist_sft.core.units import gib

PARTS = {
    "weights": "",
    "gradients": "",
    "optimizer": "master copy and moments",
    "gathered": "other ranks' weights: in use, fetched ahead, small",
    "buckets": "that gradients are collected in",
    "sending": "a bucket on its way",
    "activations": "of a full pack",
    "head": "logits in blocks, and what is kept of them",
    "update": "while the optimizer works",
}


def show(plan: Plan, changes: Sequence[Adjustment], console: Terminal) -> None:
    """Memory by part, network by collective, time, host, disk; then what to change, where it does not fit."""
    console.print(_memory(plan))
    console.print(
        _verdict(plan), style="green" if plan.fits else "red" if plan.fits is False else None, highlight=False
    )
    if plan.collectives:
        console.print(_network(plan))
    table = _table("the run", ("", "left"), ("", "left"))
    for name, value in _figures(plan):
        table.add_row(name, value)
    console.print(table)
    if plan.advice:
        console.print(plan.advice, style="yellow", markup=False, highlight=False)
    if changes:
        console.print(_changes(changes))


def _table(title: str, *columns: tuple[str, str]) -> Table:
    heads = any(head for head, _ in columns)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=heads)
    for head, justify in columns:
        table.add_column(head, justify=justify)  # type: ignore[arg-type]
    return table


def _memory(plan: Plan) -> Table:
    table = _table(f"memory of a GPU, ZeRO-{plan.zero_stage}", ("", "left"), ("", "right"), ("", "left"))
    for part, what in PARTS.items():
        if size := getattr(plan.memory, part):
            table.add_row(part, gib(size), what)
    for phase, size in plan.memory.phases.items():
        table.add_row(f"when {phase}" if " " in phase else f"in the {phase}", gib(size), "in all", style="dim")
    return table


def _verdict(plan: Plan) -> str:
    room = plan.machine.room
    if room is None:
        return f"{gib(plan.memory.device)} at the height of a step; give --gpu or --gpu-memory to see whether it fits"
    word = "fits" if plan.fits else "does not fit"
    return f"{word}: {gib(plan.memory.device)} of {gib(room)} ({RESERVED:.0%} of the {plan.machine.name} reserved)"


def _network(plan: Plan) -> Table:
    table = _table("network, in a step", ("", "left"), ("", "left"), ("times", "right"), ("whole", "right"),
                   ("a rank sends", "right"), ("ranks", "right"))  # fmt: skip
    for one in plan.collectives:
        table.add_row(one.kind, one.what, str(one.times), gib(one.bytes), gib(one.sent), str(one.ranks))
    return table


def _figures(plan: Plan) -> list[tuple[str, str]]:
    low, high = min(plan.micro_steps), max(plan.micro_steps)
    lines = [
        ("steps", f"{plan.steps:,} of {plan.tokens_per_step:,.0f} tokens"),
        ("micro-steps in a step", f"{low}" if low == high else f"{low} to {high}"),
        ("packs", f"{plan.fill:.0%} full, balance {plan.balance:.3f} (time over perfect)"),
    ]
    if plan.seconds_per_step and plan.tokens_per_second and plan.hours and plan.gpu_hours:
        rate = plan.between_nodes / plan.seconds_per_step / 1e9
        lines += [
            ("speed", f"{plan.tokens_per_second:,.0f} tokens/s, {plan.seconds_per_step:.2f} s a step, by an MFU of "
                      f"{plan.machine.mfu:.0%}; no time for the network"),
            ("to the end", f"{plan.hours:.1f} h, {plan.gpu_hours:,.1f} GPU-hours"),
            ("between nodes", f"{rate:.1f} GB/s from each node would hide it" if rate else "nothing"),
        ]  # fmt: skip
    host = {"offloaded": plan.host.offloaded, "checkpoint copy": plan.host.checkpoints, "service": plan.host.service}
    parts = ", ".join(f"{name} {gib(size)}" for name, size in host.items() if size)
    return [
        *lines,
        ("main memory of a node", f"{gib(plan.host.total)} ({parts}; once, on rank 0's: the weights, "
                                  f"{gib(plan.host.loading)})"),
        ("a checkpoint", f"{gib(plan.checkpoint_size)}; {gib(plan.disk)} on disk while one is written"),
        ("from", f"the first {plan.rows_looked_at:,} rows, {plan.steps_looked_at} steps"),
    ]  # fmt: skip


def _changes(changes: Sequence[Adjustment]) -> Table:
    table = _table("changes, cheapest first", ("", "left"), ("a GPU", "right"), ("", "left"), ("hours", "right"),
                   ("price", "left"))  # fmt: skip
    best = recommended(changes)
    for change in changes:
        hours = "" if change.plan.hours is None else f"{change.plan.hours:.1f}"
        fits = "[green]fits[/]" if change.fits else "[red]does not fit[/]"
        table.add_row(change.settings.replace("[", "\\["), gib(change.plan.memory.device), fits, hours, change.price,
                      style="bold" if change is best else None)  # fmt: skip
    return table
