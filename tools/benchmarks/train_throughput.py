"""Training itself: real tokens per CPU-second, memory, and time to the first step, against TRL and Unsloth.

Same model, weights, tokens, labels and steps for all; each system in processes of its own, one after another, all
rounds interleaved. The loss of the first step must be that of plain transformers, one sample at a time, in float32, to
a relative 1e-4 in either precision: a system that is off ends the benchmark. A real token is one of a sample, not of
padding.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.benchmarks import unsloth_peer
from tools.benchmarks.measure import heading
from tools.benchmarks.processes import build_extensions, run
from tools.benchmarks.train_inputs import Inputs, prepare

TOLERANCE = 1e-4
"""Relative, of the first loss. Samples that see each other are 5e-4 off, and more (train_inputs)."""
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Variant:
    """One way to run TRL. loss: its own, or transformers' on all logits; half_weights: no float32 weights in bf16."""

    layout: str
    loss: str = "own"
    checkpointing: bool = False
    half_weights: bool = False


TRL = {
    "trl": Variant("padded", checkpointing=True),  # as it comes: gradient checkpointing is on
    "trl-padded": Variant("padded"),
    "trl-padded-hf": Variant("padded", "transformers"),
    "trl-free": Variant("padding-free"),
    "trl-free-hf": Variant("padding-free", "transformers"),
    "trl-packed": Variant("packed"),
    "trl-packed-hf": Variant("packed", "transformers"),
    "trl-packed-hf-half": Variant("packed", "transformers", half_weights=True),
}
SYSTEMS = ("ours", "unsloth", *TRL)
CORE = ("ours", "unsloth", "trl", "trl-packed-hf")


@dataclass(frozen=True)
class Case:
    """What the systems are compared on."""

    vocabulary: int
    pack: int
    dtype: str
    ranks: int


@dataclass
class Result:
    """Figures of one system in one case.

    steps        real tokens per CPU-second of all ranks, by measured step
    memory       most bytes of all ranks in the steps, over those before the first
    whole        the same over those before the model was loaded: with weights and the optimizer's states
    first_clock, first_cpu   seconds from the start of the process to the end of the first step
    loss         of the first step
    """

    case: Case
    system: str
    steps: list[float]
    memory: int
    whole: int
    first_clock: float
    first_cpu: float
    loss: float
    losses: list[float]
    more: dict[str, Any]

    @property
    def rate(self) -> float:
        return statistics.median(self.steps)


def main() -> None:
    asked = arguments()
    if not asked.json:
        heading()
    build_extensions()
    results: list[Result] = []
    floors: list[dict[str, Any]] = []
    for vocabulary in asked.vocabulary:
        for pack in asked.pack:
            inputs = prepare(vocabulary, pack, asked.warmup + asked.steps)
            floor = least(inputs, pack, asked)
            floors.append({"vocabulary": vocabulary, "pack": pack, **floor})
            for dtype in asked.dtype:
                for ranks in asked.ranks:
                    case = Case(vocabulary, pack, dtype, ranks)
                    rows = compare(case, inputs, asked, floor["loss"])
                    results += rows
                    if not asked.json:
                        show(case, rows, floor)
    if asked.json:
        kept = [asdict(r) | {"rate": r.rate, "case": asdict(r.case)} for r in results]
        print(json.dumps({"floors": floors, "results": kept}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    several: dict[str, Any] = {"nargs": "+"}
    parser.add_argument("--systems", choices=SYSTEMS, default=list(SYSTEMS), **several)
    parser.add_argument("--vocabulary", type=int, default=[32_000, 152_000], **several)
    parser.add_argument("--pack", type=int, default=[2048, 4096], **several)
    parser.add_argument("--dtype", choices=DTYPES, default=list(DTYPES), **several)
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=[1], help="2: ZeRO-3, a thread each", **several)
    parser.add_argument("--threads", type=int, default=2, help="of all ranks together")
    parser.add_argument("--steps", type=int, default=5, help="measured, of each round")
    parser.add_argument("--warmup", type=int, default=1, help="steps before these")
    parser.add_argument("--rounds", type=int, default=1, help="of all systems, one after another")
    parser.add_argument("--set", action="append", default=[], metavar="model.KEY=VALUE", help="of our run file")
    parser.add_argument("--quick", action="store_true", help=f"32k, 2,048, float32, 2 steps, {', '.join(CORE)}")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.quick:
        asked.systems, asked.vocabulary, asked.pack, asked.dtype, asked.steps = CORE, [32_000], [2048], ["float32"], 2
    return asked


def least(inputs: Inputs, pack: int, asked: argparse.Namespace) -> dict[str, Any]:
    """The floor by precision, and the loss of the first step."""
    spec = described(inputs) | {"pack": pack, "dtypes": asked.dtype}
    return run("tools.benchmarks.floor", spec, threads=asked.threads)[0]


def compare(case: Case, inputs: Inputs, asked: argparse.Namespace, loss: float) -> list[Result]:
    """Every system, in rounds. Raises SystemExit where one does not compute the loss that it should."""
    results: dict[str, Result] = {}
    for _ in range(asked.rounds):
        for system in asked.systems:
            if not runs(system, case):
                continue
            result = one(system, case, inputs, asked)
            told = f"{result.rate:,.1f} tokens per CPU-second, {result.memory / 1e9:.2f} GB"
            print(f"{system}, {case}: {told}, first loss off by {result.loss - loss:+.1e}", file=sys.stderr, flush=True)
            if system in TRL and case.ranks > 1 and not result.more["engine"].endswith("ZeRO-3"):
                sys.exit(f"{system}: {result.more['engine']} ran, not ZeRO-3")
            if abs(result.loss / loss - 1) > TOLERANCE:
                sys.exit(f"{system}, {case}: the first loss is {result.loss:.6f}, and should be {loss:.6f}")
            if system in results:
                results[system].steps += result.steps
            else:
                results[system] = result
    return list(results.values())


def runs(system: str, case: Case) -> bool:
    if system == "unsloth":
        return case.ranks == 1  # on CPU it has no way to shard
    if system in TRL and TRL[system].half_weights:
        return case.dtype == "bfloat16" and case.ranks == 1
    return True


def one(system: str, case: Case, inputs: Inputs, asked: argparse.Namespace) -> Result:
    spec = described(inputs) | {
        "system": system,
        "pack": case.pack,
        "dtype": case.dtype,
        "steps": asked.warmup + asked.steps,
        "settings": dict(item.split("=", 1) for item in asked.set),
        **(asdict(TRL[system]) if system in TRL else {}),
    }
    program = "tools.benchmarks.train_ours" if system == "ours" else "tools.benchmarks.train_peers"
    python = str(unsloth_peer.python()) if system == "unsloth" else sys.executable
    started = time.monotonic()
    ranks = run(program, spec, python, case.ranks, asked.threads, launched=system == "ours")
    took = [sum(r["cpu"][i + 1] - r["cpu"][i] for r in ranks) for i in range(len(ranks[0]["losses"]))]
    rates = [tokens / cpu for tokens, cpu in zip(inputs.tokens, took, strict=True)]
    losses = [statistics.mean(losses) for losses in zip(*(r["losses"] for r in ranks), strict=True)]
    return Result(
        case,
        system,
        rates[asked.warmup :],
        memory=sum(r["peak"] - r["before"] for r in ranks),
        whole=sum(r["peak"] - r["empty"] for r in ranks),
        first_clock=max(r["clock"][1] for r in ranks) - started,
        first_cpu=sum(r["cpu"][1] for r in ranks),
        loss=losses[0],
        losses=losses,
        more=ranks[0]["more"],
    )


def described(inputs: Inputs) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(inputs).items()}


def show(case: Case, rows: list[Result], floor: dict[str, Any]) -> None:
    """A table, and the ratios that the project has set itself as goals."""
    shards = f"{case.ranks} ranks, ZeRO-3" if case.ranks > 1 else "1 process"
    table = Table(title=f"vocabulary {case.vocabulary:,}, packs of {case.pack:,}, {case.dtype}, {shards}")
    for name in ("system", "tokens/CPU-s", "min-max", "peak GB", "with model", "first step s", "CPU-s", "loss off by"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for r in sorted(rows, key=lambda r: -r.rate):
        table.add_row(
            r.system,
            f"{r.rate:,.0f}",
            f"{min(r.steps):,.0f}-{max(r.steps):,.0f}",
            f"{r.memory / 1e9:.2f}",
            f"{r.whole / 1e9:.2f}",
            f"{r.first_clock:.1f}",
            f"{r.first_cpu:.1f}",
            f"{r.loss - floor['loss']:+.1e}",
        )
    Console(width=120).print(table)
    limit = floor["floor"][case.dtype]
    print(
        f"  floor: {limit['flops'] / 1e6:.0f} MFLOP per token at {limit['rate'] / 1e9:.1f} GFLOP per CPU-second: "
        f"{limit['rate'] / limit['flops']:,.0f} tokens per CPU-second"
    )
    for line in ratios({r.system: r for r in rows}, limit["rate"] / limit["flops"]):
        print(f"  -> {line}", flush=True)


def ratios(rows: dict[str, Result], limit: float) -> Iterator[str]:
    ours = rows.get("ours")
    if ours is None:
        return
    yield f"{ours.rate / limit:.2f} of the floor's speed"
    trl = {name: r for name, r in rows.items() if name in TRL}
    if "trl" in trl:
        yield f"{ours.rate / trl['trl'].rate:.2f} times TRL as it comes (goal: 2)"
    if trl:
        best = max(trl.values(), key=lambda r: r.rate)
        yield f"{ours.rate / best.rate:.2f} times TRL's best, {best.system} (goal: 1.5)"
        yield f"{ours.memory / best.memory:.2f} of the memory of TRL's best (goal: 0.75)"
        least = min(trl.values(), key=lambda r: r.memory)
        yield f"{ours.memory / least.memory:.2f} of the memory of TRL's smallest, {least.system}"
    if "unsloth" in rows:
        peer = rows["unsloth"]
        yield f"{ours.rate / peer.rate:.2f} times Unsloth (goal: 1), {ours.memory / peer.memory:.2f} of its memory"


if __name__ == "__main__":
    main()
