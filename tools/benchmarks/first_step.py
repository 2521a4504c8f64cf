"""How long until the first step is served, from a file that nobody has seen before: the data service against TRL.

Ray is up on both sides of the comparison's clock for us, imports are done for both. Our time is from the run file to
the first rank's share of step 1; a second start finds the line index and the first samples in the cache. TRL prepares
all rows before its first step; to spare an hour it gets a part of them, and the rest is taken to cost as much.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.benchmarks.chats import write_chats
from tools.benchmarks.measure import WORK, heading
from tools.benchmarks.trl_peer import prepare, tiny_model
from tools.registry import tokenizer_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=60, help="of a chat on average; 60 make about 120 tokens")
    parser.add_argument("--trl-rows", type=int, default=20_000)
    asked = parser.parse_args()
    heading()
    file = write_chats(WORK / f"chats-{asked.rows}-{asked.words}.jsonl", asked.rows, asked.words)
    model = model_folder(WORK / "qwen3_tiny")
    print(f"{asked.rows:,} rows, {file.stat().st_size / 1e9:.2f} GB")
    ours(file, model)
    theirs(file, asked.rows, asked.trl_rows)


def model_folder(folder: Path) -> Path:
    """A very small model with Qwen3's tokenizer."""
    if not folder.exists():
        from transformers import AutoTokenizer

        tiny_model().save_pretrained(folder)
        AutoTokenizer.from_pretrained(tokenizer_folder("qwen3")).save_pretrained(folder)
    return folder


def ours(file: Path, model: Path) -> None:
    import ray

    from dist_sft.cluster.placement import place_encoders
    from dist_sft.cluster.runner import data_service
    from dist_sft.cluster.session import connect as join
    from dist_sft.data.ledger import Ledger
    from dist_sft.run.opened import open_run
    from dist_sft.run.supply import connect

    with TemporaryDirectory(dir=WORK) as folder:
        run = open_run(
            {
                "run": {"dir": f"{folder}/run"},
                "model": {"path": str(model)},
                "data": {"sources": [{"path": str(file)}], "cache": f"{folder}/cache"},
                "train": {"samples_per_step": 64, "steps": 100},
                "cluster": {"gpus_per_worker": 0},
            }
        )
        join(run.config)
        for name in ("cold", "second start"):
            begin = time.monotonic()
            with data_service(run, place_encoders(run.config, ray.nodes())) as offer:
                started = time.monotonic()
                supply = connect(offer, run, world=1, rank=0, session=1)
                share = next(supply.training(Ledger(), lambda step, text: None).shares(0))
                served = time.monotonic()
            print(
                f"dist-sft, {name}: first step ({share.totals.samples} samples) after {served - begin:.1f} s, "
                f"of these {started - begin:.1f} s for index, fingerprint and the look at the first 256 rows"
            )
        ray.shutdown()


def theirs(file: Path, rows: int, part: int) -> None:
    with TemporaryDirectory(dir=WORK) as folder:
        head = Path(folder) / "head.jsonl"
        with file.open("rb") as lines:
            head.write_bytes(b"".join(next(lines) for _ in range(part)))
        _, whole, _, _ = prepare(head, processes=2)
    print(f"TRL, 2 processes: {whole.wall:.0f} s to prepare {part:,} rows -> {whole.wall * rows / part:,.0f} s for all")


if __name__ == "__main__":
    main()
