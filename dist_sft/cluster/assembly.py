"""What one rank is made of, in the order in which it is built.

process group -> data -> model -> engine -> checkpoint -> training
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_sft.chat.encode import Encoder
from dist_sft.checkpoint.store import CheckpointStore
from dist_sft.cluster import run_folder
from dist_sft.cluster.build_lock import wait_for_builds
from dist_sft.config.deepspeed import deepspeed_config
from dist_sft.config.resolve import redacted
from dist_sft.config.sections import DataSection, RunConfig, Source
from dist_sft.core.errors import SftError
from dist_sft.core.files import writing
from dist_sft.data.encoding import Rows
from dist_sft.data.ledger import Ledger
from dist_sft.data.order import Steps
from dist_sft.data.pack import StepShare
from dist_sft.data.packing import Dealer
from dist_sft.model.cost import ModelCost, model_cost, peak_flops
from dist_sft.model.isolation import check_isolation
from dist_sft.model.load import load, load_config
from dist_sft.model.tokenizer import load_vocabulary, save_tokenizer
from dist_sft.service.local import LocalStepService, evaluation_shares
from dist_sft.tracking.sinks import JsonLines, Sink
from dist_sft.tracking.tracker import RankZeroTracker
from dist_sft.tracking.wandb_sink import Wandb
from dist_sft.train.clock import StepClock
from dist_sft.train.engine import build_engine
from dist_sft.train.loop import Training, train


@dataclass(frozen=True)
class RunData:
    """The data side of a run: needs no GPU and no process group."""

    encoder: Encoder
    rows: Rows
    steps: Steps
    cost: ModelCost

    @classmethod
    def of(cls, config: RunConfig) -> "RunData":
        """Raises every error that data, template or tokenizer can give before training."""
        encoder = make_encoder(config)
        rows = Rows(config.data.sources, config.data, encoder)
        steps = Steps.of(
            rows.lengths, config.run.seed, config.train.samples_per_step, config.train.steps, config.train.epochs
        )
        return cls(encoder, rows, steps, model_cost(load_config(config.model)))

    def dealer(self, config: RunConfig, world: int) -> Dealer:
        settings = config.train
        return Dealer(world, settings.tokens_per_pack, settings.packing, settings.micro_steps, self.cost.quadratic)


def make_encoder(config: RunConfig) -> Encoder:
    """The tokenizer and template of a run, with its loss weights."""
    load_config(config.model)  # first, for it says more clearly that there is no model
    data = config.data
    vocabulary = load_vocabulary(config.model.path, config.model.revision)
    return Encoder(vocabulary, data.template, data.loss, data.context_length, data.overlong)


@dataclass
class Rank:
    """One rank of a run, ready to train. done, state: where the newest checkpoint left off."""

    run: Training
    done: int
    state: dict[str, Any]
    ledger: Ledger
    tracker: RankZeroTracker


def work(settings: dict[str, Any], attempt: str) -> dict[str, Any]:
    """One rank of a run, from start to end; what rank 0 returns reaches the driver.

    settings: a RunConfig as JSON values. attempt: names this start of the run. The process group is already there.
    """
    rank = assemble(RunConfig.model_validate(settings), attempt)
    try:
        last, outcome = train(rank.run, rank.done, rank.state)
        dropped = dict(rank.ledger.counts)
        rank.tracker.note(last, outcome, ledger=dropped)
    finally:
        rank.tracker.close()
    return {"outcome": outcome, "ledger": dropped, "steps": last, "resumed_at": rank.done}


def assemble(config: RunConfig, attempt: str) -> Rank:
    """Build everything that this rank needs. A collective: all ranks call it. Raises SftError."""
    rank, world, folder = dist.get_rank(), dist.get_world_size(), Path(config.run.dir)
    device = _prepare_process()
    data = RunData.of(config)
    data.rows.probe(data.steps)
    dealer = data.dealer(config, world)
    held_out = _held_out(config, data, dealer, rank)
    fingerprints = {**data.rows.fingerprints, "encoder": data.encoder.fingerprint}
    facts = run_folder.facts(config, fingerprints, list(data.encoder.stop_ids))
    _on_rank_0(folder, lambda: _open_folder(folder, facts, config, data.encoder))

    merged = deepspeed_config(config, world, "cuda" if device.type == "cuda" else "cpu")
    model = load(config.model, merged, config.run.seed, device)
    engine = build_engine(model.module, merged, config.train)
    if config.train.packing:
        check_isolation(model, engine, data.encoder.vocabulary.size)
    adapter = config.model.tuning.kind == "lora"
    checkpoints = CheckpointStore(folder / "checkpoints", config.checkpoint.keep, adapter)
    done, state = checkpoints.load(engine)

    ledger = Ledger.resume(folder / "ledger.jsonl", done, write=rank == 0)
    sinks = _sinks(config, facts, folder, done) if rank == 0 else []
    tracker = RankZeroTracker(sinks, world, _peak(device))
    tracker.note(done, "start", attempt=attempt, steps=len(data.steps), world=world)
    service = LocalStepService(data.rows, data.steps, dealer, rank, ledger)
    run = Training(config, engine, model, service, held_out, checkpoints, tracker, StepClock(data.cost.flops))
    return Rank(run, done, state, ledger, tracker)


def _prepare_process() -> torch.device:
    """Settings of this process; the device that it trains on."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # for ninja
    wait_for_builds(say=lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    import deepspeed

    deepspeed.init_distributed(dist_backend=dist.get_backend(), timeout=timedelta(minutes=30))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _held_out(config: RunConfig, data: RunData, dealer: Dealer, rank: int) -> list[StepShare]:
    source: Source | None = config.eval.source
    if source is None:
        return []
    settings: DataSection = config.data
    rows = Rows([source], settings, data.encoder)
    return evaluation_shares(rows, dealer, rank, config.train.samples_per_step, config.eval.samples)


def _open_folder(folder: Path, facts: dict[str, Any], config: RunConfig, encoder: Encoder) -> None:
    run_folder.prepare(folder, facts, config)
    save_tokenizer(config.model.path, encoder.template.source, folder / "tokenizer", config.model.revision)


def _sinks(config: RunConfig, facts: dict[str, Any], folder: Path, done: int) -> list[Sink]:
    sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl", done)]
    wandb = config.tracking.wandb
    if wandb and wandb.mode != "disabled":
        sinks.append(Wandb(wandb, config.run, folder / "wandb", redacted(facts)))
    return sinks


def _peak(device: torch.device) -> float | None:
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _on_rank_0(folder: Path, action: Callable[[], None]) -> None:
    """Rank 0 acts on a folder; an error of it is raised on every rank."""
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            with writing(folder):
                action()
        except SftError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise outcome[0]
