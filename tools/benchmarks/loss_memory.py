"""Head and loss alone, forward and backward: peak memory and CPU-seconds, against five peers.

Same hidden states, head, labels for all, each system in a process of its own. Memory is the most that was resident
over what was before, and holds the gradients themselves, which all must make. Loss and gradients are compared with
float64; a system that is off says by how much.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.benchmarks import unsloth_peer
from tools.benchmarks.measure import WORK, heading
from tools.benchmarks.processes import run

SYSTEMS = ("ours", "unsloth", "transformers", "trl", "torch", "torch-supervised")
WRONG = {"float32": 1e-3, "bfloat16": 3e-2}
"""Relative error of gradients, and nats of the loss, above which a row is marked."""


def main() -> None:
    asked = arguments()
    if not asked.json:
        heading()
    found = {dtype: compare(dtype, asked) for dtype in asked.dtype}
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    for dtype, rows in found.items():
        show(dtype, rows, asked)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--dtype", nargs="+", choices=tuple(WRONG), default=["float32"])
    parser.add_argument("--vocabulary", type=int, default=128_000)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--supervised", type=float, default=0.3, help="share of the tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tries", type=int, default=3, help="the median counts; memory is that of the first")
    parser.add_argument("--quick", action="store_true", help="1,024 tokens, vocabulary 32,000, one try")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.quick:
        asked.vocabulary, asked.tokens, asked.tries = 32_000, 1024, 1
    return asked


def compare(dtype: str, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    import torch

    sizes = {key: getattr(asked, key) for key in ("vocabulary", "hidden", "tokens", "supervised", "threads", "tries")}
    rows: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory(dir=WORK) as folder:
        for system in ("exact", *asked.systems):
            file = Path(folder) / system
            spec = sizes | {"system": system, "dtype": dtype, "gradients": str(file)}
            python = str(unsloth_peer.python()) if system == "unsloth" else sys.executable
            row = run("tools.benchmarks.loss_heads", spec, python, threads=asked.threads)[0]
            print(
                f"{system}, {dtype}: {row['median']:.1f} CPU-s, {row['peak'] / 1e9:.2f} GB", file=sys.stderr, flush=True
            )
            gradients = torch.load(file)
            if system == "exact":
                right, exact = gradients, row
                continue
            errors = {f"{name} off": float((gradients[name] - g).norm() / g.norm()) for name, g in right.items()}
            rows[system] = row | {"loss off": row["loss"] - exact["loss"], **errors}
            file.unlink()
    return rows


def show(dtype: str, rows: dict[str, dict[str, Any]], asked: argparse.Namespace) -> None:
    title = (
        f"{asked.tokens:,} tokens, {asked.supervised:.0%} supervised, {asked.hidden} -> {asked.vocabulary:,}, {dtype}"
    )
    table = Table(title=title)
    for name in (
        "system",
        "peak GB",
        "over gradients",
        "CPU-s",
        "min-max",
        "loss off",
        "d hidden off",
        "d head off",
        "",
    ):
        table.add_column(name, justify="left" if name == "system" else "right")
    for system, row in rows.items():
        off = max(abs(row["loss off"]), row["hidden off"], row["weight off"])
        table.add_row(
            system,
            f"{row['peak'] / 1e9:.2f}",
            f"{(row['peak'] - row['gradients']) / 1e9:.2f}",
            f"{row['median']:.1f}",
            f"{min(row['cpu']):.1f}-{max(row['cpu']):.1f}",
            f"{row['loss off']:+.1e}",
            f"{row['hidden off']:.1e}",
            f"{row['weight off']:.1e}",
            "WRONG" if off > WRONG[dtype] else "",
        )
    Console(width=120).print(table)
    for line in ratios(rows):
        print(f"  -> {line}", flush=True)


def ratios(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    ours = rows.get("ours")
    goals = {"transformers": " (goals: 0.05 and 0.35)", "unsloth": " (goals: 1 and 1)"}
    for system, row in rows.items() if ours else ():
        if system != "ours":
            memory, time = ours["peak"] / row["peak"], ours["median"] / row["median"]
            yield f"{memory:.2f} of the memory and {time:.2f} of the time of {system}{goals.get(system, '')}"


if __name__ == "__main__":
    main()
