"""What was found on each node of a cluster."""

from rich.table import Table

from dist_sft.cluster.preflight.run import Report
from dist_sft.core.terminal import Terminal


def show(report: Report, console: Terminal) -> None:
    """A line for each node."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("node", "GPUs", "run.dir free", "/dev/shm", "clock", "files", "all-reduce", "python, torch")
    for head in heads:
        table.add_column(head, justify="left" if head in ("node", heads[-1]) else "right", no_wrap=head == "node")
    wrong = {finding.where for finding in report.findings}
    for i, node in enumerate(report.nodes):
        reduced = "" if report.reduced is None else f"{report.reduced[i].gigabytes:.2f} GB/s"
        table.add_row(
            node.name, str(len(node.gpus)), "?" if node.storage is None else f"{node.storage / 2**30:.1f} GiB",
            f"{node.shm / 2**30:.2f} GiB", f"{node.clock:+.2f} s", f"{node.files:,}", reduced,
            f"{node.versions['python']}, {node.versions['torch']}", style="red" if node.name in wrong else None,
        )  # fmt: skip
    console.print(table)
