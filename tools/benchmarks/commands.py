"""CPU-seconds of each command on a tiny run: with an empty cache, and once it knows the model.

The commands of another checkout are measured with --tree, in turn with this one's, by the same interpreter.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.benchmarks.measure import WORK, heading, took

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "preview": ["preview"],
    "steps": ["steps"],
    "data stats": ["data", "stats"],
    "plan": ["plan", "--gpus", "1", "--gpu", "H100"],
    "check --fast": ["check", "--fast"],
}
START = "import sys; from dist_sft.cli import main; sys.argv[0] = 'dist-sft'; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, help="another checkout, e.g. of before a change")
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    heading()
    WORK.mkdir(parents=True, exist_ok=True)
    trees = {"this": ROOT, **({"other": asked.tree.resolve()} if asked.tree else {})}
    with TemporaryDirectory(dir=WORK) as name:
        run_file = write_run(Path(name))
        print(f"{'command':14}" + "".join(f"{tree + ', ' + kind:>16}" for tree in trees for kind in ("cold", "warm")))
        for command, words in COMMANDS.items():
            figures = [figure for tree in trees.values() for figure in measured(tree, words, run_file, asked.times)]
            print(f"{command:14}" + "".join(f"{figure:14.2f} s" for figure in figures), flush=True)


def write_run(folder: Path) -> Path:
    """A run file of a tiny model and 60 chats."""
    from dist_sft.demo import model
    from dist_sft.demo.dataset import conversations

    chats = list(conversations(seed=0, count=400, held_out=False))
    model.save(folder / "model", 0, [turn["content"] for chat in chats for turn in chat.messages])
    rows = "".join(json.dumps({"messages": [dict(turn) for turn in chat.messages]}) + "\n" for chat in chats[:60])
    (folder / "rows.jsonl").write_text(rows)
    settings = {
        "run": {"dir": str(folder / "run")},
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"sources": [{"path": str(folder / "rows.jsonl")}], "context_length": 256},
        "train": {"samples_per_step": 12, "tokens_per_pack": 2048, "steps": 5},
        "cluster": {"workers": 1, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": 0}},
    }
    (folder / "run.yaml").write_text(json.dumps(settings))
    return folder / "run.yaml"


def measured(tree: Path, words: list[str], run_file: Path, times: int) -> tuple[float, float]:
    """Medians of CPU-seconds, processes that it starts included: with an empty cache, and with what that leaves."""
    cold, warm = list[float](), list[float]()
    cache, environment = run_file.parent / "cache", os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, "-c", START, *words, str(run_file), f"data.cache={cache}"]
    for _ in range(times):
        shutil.rmtree(cache, ignore_errors=True)
        for figures in (cold, warm):
            time, _ended = took(partial(subprocess.run, command, env=environment, check=True, capture_output=True))
            figures.append(time.cpu)
    return statistics.median(cold), statistics.median(warm)


if __name__ == "__main__":
    main()
