"""How long training stands still for a checkpoint: written behind it, against written while it waits.

SmolLM2-135M's real weights, bfloat16, all of them trained by two ranks under ZeRO-3: 1.6 GB of weights and states. The
first checkpoint of a run is not counted, for it allocates what the others use again.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools.benchmarks.chats import write_chats
from tools.benchmarks.measure import WORK, heading
from tools.registry import smollm2_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=4, help="that are counted, of each kind")
    parser.add_argument("--every", type=int, default=4, help="steps between two")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not asked.json:
        heading()
    with TemporaryDirectory(dir=WORK) as name:
        found = {kind: measured(Path(name), kind == "behind", asked) for kind in ("waiting", "behind")}
    ratio = statistics.median(found["behind"]["stall"]) / statistics.median(found["waiting"]["stall"])
    if asked.json:
        print(json.dumps(found | {"ratio": ratio}, indent=1))
        return
    for kind, figures in found.items():
        stalls = ", ".join(f"{stall:.2f}" for stall in figures["stall"])
        whole = statistics.median(figures["seconds"])
        print(f"{kind}: training stalled for {stalls} s; whole after {whole:.1f} s; {figures['bytes'] / 1e9:.2f} GB")
    print(f"  -> {ratio:.1%} of the time (medians; goal: 10 %)")


def measured(folder: Path, behind: bool, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds that training stalled, by checkpoint, and until each was whole; bytes of the last one."""
    from dist_sft.checkpoint.layout import Manifest, newest
    from dist_sft.run.local_ranks import LocalRanks, work_on_ranks
    from dist_sft.tracking.records import Checkpoint, read

    chats = write_chats(folder / "chats.jsonl", rows=200, mean_words=20)
    run = folder / f"run-{behind}"
    settings = {
        "run": {"name": "checkpoints", "dir": str(run)},
        "model": {"path": str(smollm2_model()), "dtype": "bfloat16"},
        "data": {"sources": [{"path": str(chats)}], "context_length": 512, "cache": str(folder / "cache")},
        "train": {"samples_per_step": 2, "tokens_per_pack": 512, "steps": asked.every * (asked.saves + 1)},
        "checkpoint": {"every": asked.every, "keep": 1, "behind": behind},
        "cluster": {"workers": 2, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": 3}},
    }
    with LocalRanks() as ranks:
        (error,) = work_on_ranks(ranks, [settings], 2, timeout=1800)
    if error:
        sys.exit(error)
    saves = read(run / "metrics.jsonl", Checkpoint)[1:]
    size = sum(shard.bytes for shard in Manifest.read(newest(run)).shards.values())
    return {"stall": [save.stall for save in saves], "seconds": [save.seconds for save in saves], "bytes": size}


if __name__ == "__main__":
    main()
