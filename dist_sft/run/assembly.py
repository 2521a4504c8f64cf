"""What one rank is made of, in the order in which it is built.

process group -> data -> model -> engine -> checkpoint -> training
"""

import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_sft.checkpoint.agreement import on_rank_0
from dist_sft.checkpoint.starts import newest_starts, starts_in
from dist_sft.checkpoint.store import CheckpointStore
from dist_sft.checkpoint.writing import Retention
from dist_sft.config.redact import redacted
from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import FullTuning, LoraTuning
from dist_sft.core.ownership import replace_files, scratch
from dist_sft.data.groups import Groups
from dist_sft.data.ledger import Ledger
from dist_sft.estimate.cost import peak_flops
from dist_sft.model.adapters import starts_of
from dist_sft.model.attention import name_of
from dist_sft.model.load import load
from dist_sft.model.sequence_parallel import SequenceParallelGroup
from dist_sft.model.tokenizer import save_tokenizer
from dist_sft.proofs.dropout import check_residual_dropout
from dist_sft.proofs.head import check_head
from dist_sft.proofs.isolation import check_isolation
from dist_sft.run import folder as run_folder
from dist_sft.run.data import HELD_OUT, TRAIN, Brief
from dist_sft.run.extension_builds import guard_builds, skip_unused_builds
from dist_sft.run.opened import OpenedRun, open_run
from dist_sft.run.supply import Offer, connect
from dist_sft.run.trainable import refuse_without_compiler
from dist_sft.tracking.json_lines import Goodput, JsonLines, tokens_so_far
from dist_sft.tracking.tracker import RankZeroTracker, Sink
from dist_sft.tracking.wandb_sink import Wandb
from dist_sft.train.clock import StepClock
from dist_sft.train.engine import build_engine
from dist_sft.train.loop import train
from dist_sft.train.parts import Heartbeat, Training


@dataclass
class Rank:
    """One rank of a run, ready to train. done, state: where the newest checkpoint left off."""

    run: Training
    done: int
    state: dict[str, Any]
    ledger: Ledger
    tracker: RankZeroTracker
    checkpoints: CheckpointStore


def work(
    settings: dict[str, Any],
    attempt: str,
    offer: Offer | None = None,
    heartbeat: Heartbeat | None = None,
    run_file: str | None = None,
) -> dict[str, Any]:
    """One rank of a run, from start to end; what rank 0 returns reaches the driver.

    settings: of `OpenedRun.portable`, as JSON values. attempt: names this start of the run. offer: of a data service;
    without one the rank reads the data itself. heartbeat: who watches it. run_file: what is kept of it, see
    `run_folder.kept_text`. The process group is already there.
    """
    rank = assemble(open_run(settings), attempt, offer, run_file)
    rank.run.heartbeat = heartbeat or Heartbeat()
    failed = True
    try:
        last, outcome = train(rank.run, rank.done, rank.state)
        dropped, good = dict(rank.ledger.counts), rank.tracker.goodput.share(time.time())
        rank.tracker.end(last, outcome)
        failed = False
    finally:
        if failed:
            rank.checkpoints.settle()
        rank.tracker.close(failed)
    return {"outcome": outcome, "ledger": dropped, "steps": last, "resumed_at": rank.done, "goodput": good}


def assemble(opened: OpenedRun, attempt: str, offer: Offer | None = None, run_file: str | None = None) -> Rank:
    """Build everything that this rank needs. A collective: all ranks call it. Raises SftError."""
    config, folder, rank, world = opened.config, opened.folder, dist.get_rank(), dist.get_world_size()
    device = _prepare_process()
    session: int = on_rank_0(folder, lambda: _begin(folder, config, run_file))
    supply = connect(offer, opened, world, rank, session)
    brief = supply.brief
    held_out, left_out = supply.held_out()
    sinks: list[Sink] = []
    on_rank_0(folder, lambda: _open_folder(folder, brief, opened, run_file))
    on_rank_0(folder, lambda: sinks.extend(_wandb(folder, brief.facts, config)))

    merged = opened.deepspeed_for(world, "cuda" if device.type == "cuda" else "cpu")
    refuse_without_compiler(merged)
    tuning = config.model.tuning
    place = run_folder.checkpoints_of(config, folder)
    kept = _kept_starts(place, tuning)
    model = load(
        config.model, opened.architecture.configuration, merged, config.run.seed, device, brief.steps[TRAIN], kept
    )
    model.context.group = SequenceParallelGroup.form(config.train.sequence_parallel)
    ratio = tuning.b_rate_ratio if isinstance(tuning, LoraTuning) else 1.0
    engine = build_engine(model.module, merged, config.train, ratio)
    ids = min(brief.vocabulary, opened.architecture.get_text_config().vocab_size)
    check_isolation(model, engine, ids, config.data.context_length)
    check_head(model, engine, ids)
    if config.model.residual_dropout:
        check_residual_dropout(model, engine)
    adapter, starts = tuning.kind == "lora", starts_of(model.module)
    checkpoints = CheckpointStore(
        place,
        Retention(config.checkpoint.keep, config.checkpoint.keep_best),
        adapter,
        attempt=f"{session}-{attempt}",
        run=run_folder.identity(brief.facts),
        starts=starts,
        behind=config.checkpoint.behind,
        versions=brief.facts["versions"],
    )
    progress = checkpoints.load(engine)
    done = progress.step

    metrics, now = folder / "metrics.jsonl", time.time()
    on_rank_0(folder, lambda: sinks.append(JsonLines(metrics, done)))
    so_far = tokens_so_far(metrics, done if rank == 0 else 0, len(brief.sources))
    good = Goodput.so_far(metrics, now) if rank == 0 else Goodput(now)
    ledger = Ledger.resume(folder / "ledger.jsonl", done, write=rank == 0)
    tracker = RankZeroTracker(sinks, world, _peak(device), brief.sources, so_far, ledger, good)
    attention = name_of(model.module.config._attn_implementation)  # type: ignore[union-attr, arg-type]
    tracker.start(done, attempt, brief.steps[TRAIN], attention)
    repaired = [each.damaged for each in (*sinks, ledger) if isinstance(each, JsonLines | Ledger) and each.damaged]
    for text in (
        *repaired,
        *progress.quarantined,
        *(f"held-out rows {reason}: {count}" for reason, count in left_out.items()),
    ):
        tracker.note(done, text)
    for text in () if done else brief.told.lines():
        tracker.note(done, text)
    if brief.held and not done and rank == 0:
        ledger.add(list(brief.held))
        tracker.note(done, f"rows held out of training by eval.share: {sum(entry.rows for entry in brief.held)}")
    checkpoints.tell, checkpoints.say = tracker.checkpoint, tracker.note
    clock = StepClock(brief.cost.flops)
    run = Training(
        config,
        engine,
        model,
        supply.training(ledger, tracker.note),
        brief.groups[TRAIN],
        held_out,
        brief.groups.get(HELD_OUT, Groups()),
        checkpoints,
        tracker,
        clock,
    )
    return Rank(run, done, progress.state, ledger, tracker, checkpoints)


def _prepare_process() -> torch.device:
    """Settings of this process; the device that it trains on."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # for ninja
    guard_builds(lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    skip_unused_builds()
    import deepspeed

    deepspeed.init_distributed(dist_backend=dist.get_backend(), timeout=timedelta(minutes=30))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _kept_starts(checkpoints: Path, tuning: FullTuning | LoraTuning) -> dict[str, Tensor] | None:
    """What the adapter of the run started from, if it has been trained before."""
    if not isinstance(tuning, LoraTuning) or tuning.init != "pissa":
        return None
    newest: Path | None = on_rank_0(checkpoints, lambda: newest_starts(checkpoints))
    return starts_in(newest) if newest else None


def _begin(folder: Path, config: RunConfig, run_file: str | None) -> int:
    run_folder.begin(folder, config, run_file)
    return run_folder.next_session(folder)


def _open_folder(folder: Path, brief: Brief, opened: OpenedRun, run_file: str | None) -> None:
    run_folder.prepare(folder, brief.facts, opened.config, run_file)
    place = run_folder.own(folder, "tokenizer")
    with scratch(folder, "tokenizer") as made:
        save_tokenizer(opened.model.tokenizer, brief.template, made)
        replace_files(made, place)


def _wandb(folder: Path, facts: dict[str, Any], config: RunConfig) -> list[Sink]:
    wandb = config.tracking.wandb
    return (
        [Wandb(wandb, config.run, run_folder.own(folder, "wandb"), redacted(facts))]
        if wandb and wandb.mode != "disabled"
        else []
    )


def _peak(device: torch.device) -> float | None:
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
