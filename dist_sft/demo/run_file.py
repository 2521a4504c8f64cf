"""The demo's run file: what `dist-sft train` would be given for the same run."""

from pathlib import Path
from typing import Any

import yaml

STEPS = 250
SAMPLES_PER_STEP = 64


def write(folder: Path, seed: int, gpus: int) -> Path:
    """Write FOLDER/run.yaml, which trains FOLDER/model on FOLDER/train.jsonl into FOLDER/run, on CPU without GPUs."""
    run: dict[str, Any] = {
        "run": {"name": "demo", "dir": str(folder / "run"), "seed": seed},
        "model": {"path": str(folder / "model"), "dtype": "float32", "neftune": {"alpha": 5}},
        "data": {"sources": [{"path": str(folder / "train.jsonl")}], "context_length": 256},
        "train": {
            "samples_per_step": SAMPLES_PER_STEP,
            "tokens_per_pack": 2048,
            "steps": STEPS,
            "learning_rate": 6.0e-3,
            "warmup": 0.05,
            "optimizer": {"betas": [0.9, 0.98]},
        },
        "eval": {"source": {"path": str(folder / "held_out.jsonl")}, "every": 50},
        "checkpoint": {"every": 125},
        "cluster": {"workers": min(2, gpus) or 2, "gpus_per_worker": min(1, gpus)},
        "deepspeed": "ds_configs/zero3.json" if gpus else "ds_configs/cpu_debug.json",
        "tracking": {"wandb": {"project": "dist-sft-demo", "mode": "offline"}, "log_every": 10},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    return path
