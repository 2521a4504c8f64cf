"""All that can be found wrong without a GPU and without reading weights."""

import os
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import PretrainedConfig

from dist_sft.chat.certificate import Certificate
from dist_sft.commands.rehearsal import rehearse
from dist_sft.config.advice import warnings
from dist_sft.config.deepspeed import Device, deepspeed_config
from dist_sft.config.presets import SOURCES
from dist_sft.config.run_config import RunConfig
from dist_sft.data.encoding import PROBE, EncodedStep
from dist_sft.data.packing import Packer
from dist_sft.estimate import advice as advisor
from dist_sft.estimate.advice import Advice, DataFacts, advise
from dist_sft.estimate.memory import estimate
from dist_sft.model.architecture import load_architecture
from dist_sft.model.capacity import count_trained
from dist_sft.proofs.masks import certify_masks, prove_masks
from dist_sft.proofs.noise import prove_noise
from dist_sft.proofs.packing import prove_packing
from dist_sft.proofs.proof import Proof, table
from dist_sft.run import folder as run_folder
from dist_sft.run.data import RunData
from dist_sft.run.extension_builds import wait_for_builds
from dist_sft.run.resources import check_resources, is_local

APART = (
    "rows",
    "masks",
    "masks_proved",
    "masks_looked_at",
    "dropped",
    "advice",
    "warnings",
    "tuning",
    "memory",
    "proofs",
)
"""Findings that are not shown as name and value."""
SHOWN = {"supervised share": "{:.1%}", "fill": "{:.0%} of packs", "balance": "{:.3f} (time over perfect)"}


def check_run(config: RunConfig, fast: bool = False, rows: int = PROBE) -> dict[str, Any]:
    """What was looked at, by name. Raises the first SftError that a run would end with.

    fast: leave out what takes a model.  rows: so many of the run's first are looked at.
    """
    device: Device = "cuda" if config.cluster.gpus_per_worker else "cpu"
    merged = deepspeed_config(config, config.cluster.most, device)
    run_dir = run_folder.locate(config)
    _check_machine(config)
    wait_for_builds(fresh=0)
    data = RunData.of(config)
    looked = data.train.rows.probe(data.train.steps, rows)
    run_folder.refuse_changes(run_dir, data.facts(config), run_folder.checkpoints_of(config, run_dir))
    masks, architecture = certify_masks(data.train, looked), load_architecture(config.model)
    return {
        "rows": [{"source": source.name, "rows": len(source)} for source in data.train.rows.sources],
        "steps": len(data.train.steps),
        **_preset(config),
        "zero_stage": merged.get("zero_optimization", {}).get("stage", 0),
        **_masks(looked, masks),
        **_step_size(looked, data.packer(config, config.cluster.most), config.train.samples_per_step),
        "tuning": _advice(config, architecture, data, looked),
        "warnings": warnings(config),
        **({"held_out_rows": data.held_out.steps.positions} if data.held_out else {}),
        "memory": _memory(config, architecture, merged, device, masks.supervised / masks.tokens),
        "proofs": [
            *prove_masks(masks),
            *_of_held_out(data, rows),
            *([] if fast else _proofs(config, architecture, data, looked)),
        ],
    }


def _preset(config: RunConfig) -> dict[str, str]:
    """What train.preset left in the run's settings, and where its values are from."""
    train = config.train
    if train.preset == "none":
        return {}
    chosen = f"learning_rate {train.learning_rate:g}, {train.schedule}, warmup {train.warmup:g}"
    chosen += f", weight_decay {train.optimizer.weight_decay:g}"
    return {"preset": f"{train.preset}: {chosen}; what the run file leaves open is from {SOURCES[train.preset]}"}


def _advice(config: RunConfig, architecture: PretrainedConfig, data: RunData, looked: EncodedStep) -> list[Advice]:
    """What the advisor says, from the rows that were looked at, as though all others were like them."""
    rows = sum(data.train.rows.lengths)
    supervised = sum(sample.supervised for sample in looked.samples) / len(looked.samples)
    tokens = [0, 0]  # of chats, of plain text
    for id_, sample in zip(looked.ids, looked.samples, strict=True):
        tokens[data.train.rows.formats[id_.source] == "text"] += len(sample)
    facts = DataFacts(
        rows=rows,
        supervised=round(supervised * rows),
        epochs=data.train.steps.positions / rows,
        text=tokens[1] / sum(tokens),
    )
    return advise(config, architecture, facts)


def _memory(
    config: RunConfig, architecture: PretrainedConfig, deepspeed: dict[str, Any], device: Device, supervised: float
) -> dict[str, float]:
    """Estimated bytes of one rank, by what they hold. supervised: share of all tokens."""
    trained = count_trained(architecture, config.model.tuning)
    adapters = trained.total if config.model.tuning.kind == "lora" else 0
    parameters = trained.base + adapters
    memory = estimate(config, architecture, deepspeed, parameters, trained.total, device, supervised=supervised)
    return {"device": memory.device, **asdict(memory)}


def _proofs(config: RunConfig, architecture: PretrainedConfig, data: RunData, looked: EncodedStep) -> list[Proof]:
    proofs = prove_packing(config, architecture, looked.samples)
    if config.model.neftune:
        width = architecture.get_text_config().hidden_size
        proofs += prove_noise(config.model.neftune, looked.samples, width, config.run.seed)
    return [*proofs, *rehearse(config, architecture, looked.samples, data.encoder.template.source)]


def _check_machine(config: RunConfig) -> None:
    """Count GPUs and CPUs where a local Ray would be started: a cluster's are known only once it is joined."""
    if is_local(config):
        have = {"GPU": float(torch.cuda.device_count()), "CPU": float(os.cpu_count() or 1)}
        check_resources(config, have, "this machine")


def _masks(looked: EncodedStep, masks: Certificate) -> dict[str, Any]:
    """What the first rows are as samples."""
    return {
        "masks": masks,
        "masks_proved": masks.agreed,
        "masks_looked_at": masks.rows,
        "dropped": [f"{entry.where}: {entry.what}" for entry in looked.entries],
        "supervised_share": masks.supervised / masks.tokens,
        "longest": max(len(sample) for sample in looked.samples),
    }


def _step_size(looked: EncodedStep, packer: Packer, samples: int) -> dict[str, Any]:
    """How a step of rows like these is packed."""
    plan = packer.pack(np.resize([len(sample) for sample in looked.samples], samples).tolist())
    return {"micro_steps": plan.micro_steps, "balance": plan.balance, "fill": plan.fill, "advice": plan.advice()}


def _of_held_out(data: RunData, rows: int) -> list[Proof]:
    """Of the masks of held-out rows, where there are any."""
    if (feed := data.held_out) is None:
        return []
    return prove_masks(certify_masks(feed, feed.rows.probe(feed.steps, rows)), ", held-out rows")


def as_json(findings: dict[str, Any]) -> dict[str, Any]:
    """For machines."""
    return findings | {
        "masks": findings["masks"].as_dict(),
        "tuning": [asdict(advice) for advice in findings["tuning"]],
        "proofs": [asdict(proof) for proof in findings["proofs"]],
    }


def show(findings: dict[str, Any], console: Console) -> None:
    """A line per finding; of the rows that are dropped the first three."""
    lines = [(name.replace("_", " "), value) for name, value in findings.items() if name not in APART]
    rows = ((f"rows of {one['source']}", one["rows"]) for one in findings["rows"])
    lines = [*rows, *findings["masks"].lines(), *lines]
    lines.append(("memory per rank", _shown_memory(findings["memory"])))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        shown = SHOWN[name].format(value) if name in SHOWN else value
        console.print(f"{name:>{width}}  {shown}", highlight=False, markup=False, soft_wrap=True)
    if dropped := findings["dropped"]:
        console.print(f"{len(dropped)} of these rows are dropped or cut:", highlight=False)
        for line in dropped[:3]:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    for line in (*findings["warnings"], *([findings["advice"]] if findings["advice"] else [])):
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for line in advisor.lines(findings["tuning"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if findings["proofs"]:
        console.print(table(findings["proofs"]))


def _shown_memory(memory: dict[str, float]) -> str:
    gib = {name: f"{bytes_ / 2**30:.2g} GiB" for name, bytes_ in memory.items() if bytes_}
    parts = ", ".join(f"{name} {size}" for name, size in gib.items() if name not in ("device", "host", "early"))
    return f"{gib['device']} ({parts})" + (f"; {gib['host']} on the host" if "host" in gib else "") + ", estimated"
