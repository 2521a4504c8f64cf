"""A real model on real data, with every check on: SmolLM2-135M on GSM8K, all weights and LoRA, two ranks ZeRO-3.

Proves each run with `dist-sft check`, trains it with `dist-sft train` (which goes on where it was stopped), and draws
the losses.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dist_sft.tracking import records
from dist_sft.tracking.records import Evaluation, Step
from tools.benchmarks.measure import WORK, heading
from tools.registry import smollm2_model

KINDS = {
    "full": ("all weights, 2e-5", ["train.learning_rate=2e-5"]),
    "lora": ("LoRA rank 16, 5e-4", ["train.learning_rate=5e-4", "model.tuning={kind: lora, rank: 16, alpha: 32}"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k_train.jsonl and gsm8k_test.jsonl")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=Path, default=WORK / "smollm2", help="where the run folders are, or will be")
    parser.add_argument("--png", type=Path, help="picture of the losses")
    options = parser.parse_args()
    heading()
    options.runs.mkdir(parents=True, exist_ok=True)
    run_file = options.runs / "run.json"
    run_file.write_text(json.dumps(settings(options.data.resolve(), options.steps)))
    curves = {}
    for kind, (title, overrides) in KINDS.items():
        folder = options.runs / kind
        for command in ("check", "train"):
            words = [Path(sys.executable).with_name("dist-sft"), command, run_file, f"run.dir={folder}", *overrides]
            subprocess.run(list(map(str, words)), check=True)
        curves[title] = read(folder)
        steps, held_out = curves[title]
        early, late = mean(steps, 1, 5), mean(steps, options.steps - 4, options.steps)
        before, after = held_out[min(held_out)], held_out[max(held_out)]
        print(f"{title}: first five steps {early:.3f}, last five {late:.3f}; held out {before:.3f} -> {after:.3f}")
    if options.png:
        draw(curves, options.png)


def settings(data: Path, steps: int) -> dict[str, Any]:
    return {
        "run": {"name": "smollm2-gsm8k"},
        "model": {"path": str(smollm2_model()), "dtype": "bfloat16", "neftune": {"alpha": 5}},
        "data": {"sources": [{"path": str(data / "gsm8k_train.jsonl")}], "context_length": 512},
        "train": {"samples_per_step": 8, "tokens_per_pack": 1024, "steps": steps, "warmup": 2},
        "eval": {"source": {"path": str(data / "gsm8k_test.jsonl")}, "samples": 16, "every": 10},
        "checkpoint": {"every": steps},
        "cluster": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 0.5},
        "deepspeed": "ds_configs/zero3.json",
    }


def read(run_dir: Path) -> tuple[dict[int, float], dict[int, float]]:
    """Losses by step: of training, and of held-out rows."""
    steps, held_out = (records.read(run_dir / "metrics.jsonl", kind) for kind in (Step, Evaluation))
    return {step.step: step.loss for step in steps}, {found.step: found.loss for found in held_out}


def mean(losses: dict[int, float], begin: int, end: int) -> float:
    chosen = [loss for step, loss in losses.items() if begin <= step <= end]
    return sum(chosen) / len(chosen)


def draw(curves: dict[str, tuple[dict[int, float], dict[int, float]]], png: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for (title, (steps, held_out)), colour in zip(curves.items(), ("tab:blue", "tab:orange"), strict=True):
        axes.plot(list(steps), list(steps.values()), color=colour, alpha=0.5, label=f"{title}: training")
        axes.plot(list(held_out), list(held_out.values()), "o--", color=colour, label=f"{title}: held out")
    axes.set(xlabel="step (8 samples)", ylabel="loss, nats per answer token", title="SmolLM2-135M-Instruct on GSM8K")
    axes.legend(fontsize="small", ncols=2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=110)


if __name__ == "__main__":
    main()
