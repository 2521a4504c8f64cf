"""All that can be found wrong without a GPU and without reading weights."""

from typing import Any

from rich.console import Console

from dist_sft.cluster.assembly import RunData
from dist_sft.cluster.build_lock import wait_for_builds
from dist_sft.config.deepspeed import Device, deepspeed_config
from dist_sft.config.sections import RunConfig
from dist_sft.data.encoding import PROBE, Rows


def check_run(config: RunConfig) -> dict[str, Any]:
    """What was looked at, by name. Raises the first SftError that a run would end with."""
    device: Device = "cuda" if config.cluster.gpus_per_worker else "cpu"
    merged = deepspeed_config(config, config.cluster.workers, device)
    wait_for_builds(fresh=0)
    data = RunData.of(config)
    data.rows.probe(data.steps)
    count = min(PROBE, data.steps.positions)
    looked = data.rows.encode(0, [data.steps.order.sample(position) for position in range(count)])
    findings: dict[str, Any] = {
        "rows": dict(zip((source.name for source in data.rows.sources), data.rows.lengths, strict=True)),
        "steps": len(data.steps),
        "zero_stage": merged.get("zero_optimization", {}).get("stage", 0),
        "masks_proved": len(looked.ids),
        "masks_looked_at": count,
        "dropped": [f"{entry.where}: {entry.what}" for entry in looked.entries],
        "supervised_share": sum(s.supervised for s in looked.samples) / sum(len(s) for s in looked.samples),
        "longest": max(len(sample) for sample in looked.samples),
    }
    if config.eval.source:
        held_out = Rows([config.eval.source], config.data, data.encoder)
        findings["held_out_rows"] = sum(held_out.lengths)
    return findings


def show(findings: dict[str, Any], console: Console) -> None:
    """A line per finding."""
    for name, value in findings.items():
        shown = f"{value:.1%}" if name == "supervised_share" else value
        console.print(f"{name.replace('_', ' '):>18}  {shown}", highlight=False, markup=False)
    console.print("ok")
