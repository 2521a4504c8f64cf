"""A rehearsal: the run's own settings and data on a small copy of its model, trained here on CPU ranks, four ways.

    plain     one rank, no ZeRO, one sample after the other
    nudged    the same, with each weight off by one unit in the last place: how much of a difference is rounding
    as asked  several ranks, with the run's ZeRO stage, offload, packing, accumulation and sequence parallelism
    resumed   the same, gone on from its checkpoint of the last step but one

All must learn the same, up to what `model.rounding` allows for the distance between the first two.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dist_sft.chat.conversation import EncodedSample
from dist_sft.chat.templates import ChatTemplate
from dist_sft.config.deepspeed import transferable
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ClusterError, ConfigError
from dist_sft.model.architecture import Architecture
from dist_sft.model.miniature import miniature, save_nudged, save_random
from dist_sft.model.rounding import allowed, largest
from dist_sft.model.supported import splits
from dist_sft.model.tokenizer import save_tokenizer
from dist_sft.proofs.proof import Proof
from dist_sft.run.local_ranks import LocalRanks, work_on_ranks
from dist_sft.run.opened import OpenedRun, open_run
from dist_sft.tracking.records import Step, read

STEPS, SAMPLES, TOKENS = 3, 6, 512
"""Of a rehearsal: its steps, their samples, and their longest sample at most."""
MOST = 4
"""Ranks at most, where several share a pack."""
TIMEOUT = 900.0
EPSILON = 1e-3
"""Of AdamW, in place of 1e-8, which would magnify the rounding of gradients near 0 into whole updates."""


def rehearse(run: OpenedRun, samples: Sequence[EncodedSample], template: ChatTemplate) -> list[Proof]:
    """Proofs that world size, ZeRO, offload, packing and accumulation change nothing, and that a checkpoint loads.

    samples: some of the run's, to choose a length by. template: the run's own.
    """
    names = ("ranks, ZeRO and packing as one rank alone", "resumed from its checkpoint as never stopped")
    config, small = run.config, miniature(run.architecture.configuration)
    near = max(n for n in splits(Architecture.of(small)) if config.train.sequence_parallel % n == 0 and n <= MOST)
    world = max(2, near)
    with tempfile.TemporaryDirectory(prefix="dist_sft_rehearsal_") as name:
        folder = Path(name)
        asked = _as_asked(run, folder, world, near, samples)
        try:
            merged = open_run(asked).resolved_deepspeed
        except ConfigError as error:
            return [Proof(each, None, detail=f"not on CPU: {error.what}") for each in names]
        parameters = save_random(small, folder / "model", config.run.seed)
        save_tokenizer(run.model.tokenizer, template, folder / "model")
        save_nudged(folder / "model", folder / "nudged_model")
        plain = _plain(asked)
        off = plain | {"model": plain["model"] | {"path": str(folder / "nudged_model")}}
        kinds = {"plain": plain, "nudged": off, "asked": asked, "resumed": asked}
        settings = {each: kind | {"run": kind["run"] | {"dir": str(folder / each)}} for each, kind in kinds.items()}
        both = [settings["asked"], settings["resumed"]]
        try:
            with LocalRanks() as ranks:
                ended = work_on_ranks(ranks, [settings["plain"], settings["nudged"]], 1, TIMEOUT)
                ended += work_on_ranks(ranks, both, world, TIMEOUT, str(folder / "asked"))
        except ClusterError as error:
            return [Proof.refuted(each, error) for each in names]
        if failed := [error for error in ended if error]:
            return [Proof(each, False, detail=failed[0]) for each in names]
        records = {each: read(folder / each / "metrics.jsonl", Step) for each in settings}
        packs = max(record.micro_steps for record in records["asked"])
        stage = merged.get("zero_optimization", {}).get("stage", 0)
        detail = f"{STEPS} steps of {SAMPLES} samples, {world} ranks, {packs} micro-steps, ZeRO-{stage}, "
        detail += f"{parameters / 1e6:.1f} M parameters{''.join(_replaced(config, near))}"
        return list(_compared(names, records, detail))


def _compared(names: tuple[str, str], records: dict[str, list[Step]], detail: str) -> Iterator[Proof]:
    plain, nudged, wanted, resumed = (records[each] for each in ("plain", "nudged", "asked", "resumed"))
    figures: dict[str, Callable[[Step], float | None]] = {
        "loss": lambda step: step.loss,
        "gradient norm": lambda step: step.grad_norm,
    }
    for what, figure in figures.items():
        limit = allowed(torch.float32, _difference(plain, nudged, figure))
        yield Proof.measured(names[0], _difference(plain, wanted, figure), limit, f"{what}; {detail}")
    yield Proof.measured(names[1], _difference(wanted, resumed, figures["loss"]), 0.0, f"loss; {detail}")


def _replaced(config: RunConfig, near: int) -> Iterator[str]:
    """What a run has and its rehearsal has not."""
    if near != config.train.sequence_parallel:
        yield f", sequence_parallel {near} in place of {config.train.sequence_parallel}"
    if config.train.optimizer.name == "adamw8bit":
        yield ", adamw in place of adamw8bit"


def _as_asked(run: OpenedRun, folder: Path, world: int, near: int, samples: Sequence[EncodedSample]) -> dict[str, Any]:
    """The run's settings, made small, for ranks on CPU. Rates do not warm up, so that a lost update shows."""
    config = run.config
    lengths = sorted(len(sample) for sample in samples)
    length = min(config.data.context_length, max(TOKENS, lengths[len(lengths) // 2]))
    settings: dict[str, Any] = config.model_dump(mode="json")
    optimizer = settings["train"]["optimizer"]
    settings["run"] |= {"name": "rehearsal"}
    settings["model"] |= {"path": str(folder / "model"), "revision": None, "dtype": "float32", "attention": "auto"}
    if settings["model"]["neftune"]:
        settings["model"]["neftune"]["schedule"] = {}
    settings["data"] |= {"context_length": length, "bad_rows": "drop", "max_bad_share": 1.0, "cache": None}
    settings["train"] |= {
        "samples_per_step": SAMPLES,
        "tokens_per_pack": 2 * length,
        "pad_to_multiple_of": 1,
        "micro_steps": 2,
        "sequence_parallel": near,
        "steps": STEPS,
        "epochs": None,
        "schedule": "constant",
        "warmup": 0,
        "optimizer": optimizer | {"eps": EPSILON, "name": optimizer["name"].removesuffix("8bit")},
    }
    settings["data"]["schedule"] = []
    settings["eval"] = {}
    settings["checkpoint"] |= {"every": 1, "keep": STEPS, "url": None}
    settings["cluster"] |= {"workers": world, "gpus_per_worker": 0, "address": None}
    settings["tracking"] |= {"wandb": None, "group_by": None}
    settings["deepspeed"] = transferable(config, run.deepspeed)
    return settings


def _plain(asked: dict[str, Any]) -> dict[str, Any]:
    return asked | {
        "model": asked["model"] | {"gradient_checkpointing": False, "compile": False},
        "train": asked["train"] | {"packing": False, "micro_steps": 1, "sequence_parallel": 1},
        "cluster": asked["cluster"] | {"workers": 1},
        "deepspeed": {"zero_optimization": {"stage": 0}},
    }


def _difference(one: list[Step], other: list[Step], figure: Callable[[Step], float | None]) -> float:
    """The largest relative difference over all steps; infinite where one of them has other steps."""
    if [record.step for record in one] != [record.step for record in other]:
        return float("inf")
    pairs = [(figure(a), figure(b)) for a, b in zip(one, other, strict=True)]
    differences = [abs(a - b) / max(abs(a), 1e-12) for a, b in pairs if a is not None and b is not None]
    return largest(differences) if differences else float("inf")
