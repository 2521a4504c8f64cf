"""All that can be found wrong without a GPU and without reading weights."""

import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dist_sft.cluster import run_folder
from dist_sft.cluster.build_lock import wait_for_builds
from dist_sft.cluster.run_data import RunData
from dist_sft.cluster.session import check_resources, ray_address
from dist_sft.config.deepspeed import Device, deepspeed_config
from dist_sft.config.sections import RunConfig
from dist_sft.data.encoding import PROBE, EncodedStep
from dist_sft.data.order import Steps

RAY_STARTED = Path("/tmp/ray/ray_current_cluster")
"""Left by `ray start`: a cluster that ray.init joins when no address is given."""


def check_run(config: RunConfig) -> dict[str, Any]:
    """What was looked at, by name. Raises the first SftError that a run would end with."""
    device: Device = "cuda" if config.cluster.gpus_per_worker else "cpu"
    merged = deepspeed_config(config, config.cluster.workers, device)
    run_dir = run_folder.locate(config)
    _check_machine(config)
    wait_for_builds(fresh=0)
    data = RunData.of(config)
    looked = data.rows.probe(data.steps)
    run_folder.refuse_changes(run_dir, data.facts(config))
    return {
        "rows": dict(zip((source.name for source in data.rows.sources), data.rows.lengths, strict=True)),
        "steps": len(data.steps),
        "zero_stage": merged.get("zero_optimization", {}).get("stage", 0),
        **_masks(looked, min(PROBE, data.steps.positions)),
        **_held_out(config, data),
    }


def _check_machine(config: RunConfig) -> None:
    """Count GPUs and CPUs where a local Ray would be started: a cluster's are known only once it is joined."""
    if ray_address(config) is None and not RAY_STARTED.exists():
        have = {"GPU": float(torch.cuda.device_count()), "CPU": float(os.cpu_count() or 1)}
        check_resources(config, have, "this machine")


def _masks(looked: EncodedStep, count: int) -> dict[str, Any]:
    """What the first `count` rows are as samples."""
    return {
        "masks_proved": len(looked.ids),
        "masks_looked_at": count,
        "dropped": [f"{entry.where}: {entry.what}" for entry in looked.entries],
        "supervised_share": sum(s.supervised for s in looked.samples) / sum(len(s) for s in looked.samples),
        "longest": max(len(sample) for sample in looked.samples),
    }


def _held_out(config: RunConfig, data: RunData) -> dict[str, int]:
    if (rows := data.held_out) is None:
        return {}
    rows.probe(Steps.of(rows.lengths, 0, config.train.samples_per_step, None, epochs=1.0))
    return {"held_out_rows": sum(rows.lengths)}


def show(findings: dict[str, Any], console: Console) -> None:
    """A line per finding; of the rows that are dropped the first three."""
    lines = [(name.replace("_", " "), value) for name, value in findings.items() if name not in ("rows", "dropped")]
    lines = [*((f"rows of {name}", count) for name, count in findings["rows"].items()), *lines]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        shown = f"{value:.1%}" if name == "supervised share" else value
        console.print(f"{name:>{width}}  {shown}", highlight=False, markup=False, soft_wrap=True)
    if dropped := findings["dropped"]:
        console.print(f"{len(dropped)} of these rows are dropped or cut:", highlight=False)
        for line in dropped[:3]:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print("ok")
