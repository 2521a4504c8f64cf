"""Run `assembly.work` on as many ranks as the run file asks for, through Ray Train.

OpenedRun -> Ray (a cluster's, or a local one) -> TorchTrainer -> work on every rank -> RunResult
"""

import contextlib
import logging
import math
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dist_sft.cluster.head import watched_head
from dist_sft.cluster.placement import place_encoders
from dist_sft.cluster.preflight.run import preflight
from dist_sft.cluster.progress import Follower
from dist_sft.cluster.session import connect, quiet
from dist_sft.cluster.worker import train_loop_per_worker
from dist_sft.core.errors import ClusterError, SftError, StorageError
from dist_sft.core.ownership import scratch
from dist_sft.core.redact import scrubbed
from dist_sft.core.signals import whole
from dist_sft.run import folder as run_folder
from dist_sft.run.data import RunData
from dist_sft.run.opened import OpenedRun
from dist_sft.run.resources import (
    check_resources,
    encoder_cpus,
    is_local,
    ray_address,
    service_resources,
    worker_environment,
    worker_resources,
)
from dist_sft.run.supply import Offer
from dist_sft.run.trainable import is_here, refuse_untrainable
from dist_sft.tracking.records import Step, read
from dist_sft.tracking.wandb_sink import refuse_without_login

PATIENCE = 60
"""Seconds by which a collective outlasts the watchdog, which can say where it was stuck."""


LEASE = 120.0
"""Seconds that a job waits for its run folder: a server of NFSv4 keeps the lock of a lost machine for 90, usually."""

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this for what was submitted as a job. Whoever types `train` is told at once that a folder is taken."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    outcome  "finished" or "stopped early"
    ledger   rows that were dropped or cut, by reason
    goodput  share of the time since the first start that went into steps which count
    """

    outcome: str
    run_dir: Path
    ledger: dict[str, int]
    steps: int
    resumed_at: int
    goodput: float


log = logging.getLogger(__name__)


def train(run: OpenedRun) -> RunResult:
    """Run, or go on with, what a run file describes. Raises SftError; whatever a rank raised arrives as itself.

    Ctrl-C is a KeyboardInterrupt here: Ray is shut down, and the newest whole checkpoint stays.
    """
    import ray

    quiet(run.config)
    _ = run.resolved_deepspeed  # its contradictions are said before anything starts
    run_dir = run_folder.locate(run.config)
    run = run.changed(run=run.config.run.model_copy(update={"dir": str(run_dir)}))
    config = run.config
    kept = run_folder.kept_text(run)
    run_folder.refuse_collisions(run_dir, config, kept)
    _look_at_model(run)
    if is_local(config):
        refuse_without_login(config.tracking.wandb)
    with _lock(run, kept):
        started = not ray.is_initialized()
        try:
            if started:
                connect(config)
            check_resources(config, ray.cluster_resources(), "Ray")
            nodes = place_encoders(config, ray.nodes())
            if ray_address(config) is not None and config.cluster.preflight:
                preflight(run, run_dir, short=True).refuse()
            with data_service(run, nodes) as offer:
                return _fit(run, run_dir, offer, kept)
        finally:
            if started:
                with whole():
                    ray.shutdown()


def _look_at_model(run: OpenedRun) -> None:
    """What cannot be trained is refused before Ray starts; of a model that only the nodes have, they do it."""
    if is_here(run) or not Path(run.config.model.path).is_absolute():
        for note in refuse_untrainable(run):
            print(f"warning: {note}", file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def data_service(run: OpenedRun, nodes: Sequence[str]) -> Iterator[Offer | None]:
    """The running service, for as long as the block lasts; None where each worker encodes for itself.

    nodes: id of the node of each encoder.
    """
    if not nodes:
        yield None
        return
    from dist_sft.service.members import start

    log.info("opening the data")
    data, config = RunData.of(run), run.config
    settings = config.service
    rows, steps = sum(data.train.rows.lengths), len(data.train.steps)
    log.info(f"encoding {rows:,} rows for {steps:,} steps on {len(nodes)} encoders")
    service = start(
        f"dist-sft-{uuid.uuid4().hex[:12]}",
        data.feeds,
        data.packer(config.cluster.most),
        config.data.context_length,
        nodes,
        encoder_cpus(config),
        service_resources(config),
        settings.budget,
        settings.stall,
        config.cluster.most * settings.prefetch,
    )
    try:
        data.probe()
        yield Offer(data.brief(), service.name, service.started)
    finally:
        service.stop()


def _fit(run: OpenedRun, run_dir: Path, offer: Offer | None, kept: str | None) -> RunResult:
    """kept: of the run file, see `run_folder.kept_text`."""
    with scratch(run_dir, "ray") as records:  # Ray Train's own; the checkpoints are ours
        return _trained(run, run_dir, records, offer, kept)


def _trained(run: OpenedRun, run_dir: Path, records: Path, offer: Offer | None, kept: str | None) -> RunResult:
    import ray
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from dist_sft.cluster.failures import EndOnErrors, as_sft_error

    config, begin = run.config, time.time()
    attempt, wanted = uuid.uuid4().hex[:12], config.cluster
    gpu = wanted.gpus_per_worker > 0

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's handler would swallow Ctrl-C and report a dead actor; Python's raises KeyboardInterrupt."""

    scaling: dict[str, Any] = {  # of Ray Train v2, which Ray's type hints do not know
        "num_workers": wanted.most if wanted.fewest == wanted.most else (wanted.fewest, wanted.most),
        "use_gpu": gpu,
        "resources_per_worker": worker_resources(config),
        "elastic_resize_monitor_interval_s": wanted.regrow,
    }
    trainer = Trainer(
        train_loop_per_worker,  # type: ignore[arg-type]  # what rank 0 returns is result.return_value
        train_loop_config={
            "given": ray.put((run.portable.model_dump(mode="json"), offer, kept)),
            "attempt": attempt,
            "folder": str(Path.cwd()),
            "hang": wanted.hang,
            "stacks": str(run_dir / "stacks"),
        },
        scaling_config=ScalingConfig(**scaling),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=math.ceil(wanted.hang) + PATIENCE),
        run_config=RayRunConfig(
            name=f"{re.sub(r'[^A-Za-z0-9_-]+', '_', scrubbed(config.run.name))}-{attempt}",  # of a folder
            storage_path=str(records),
            failure_config=FailureConfig(max_failures=wanted.max_failures),
            callbacks=[EndOnErrors()],  # type: ignore[list-item]  # of Ray Train v2
            worker_runtime_env={"env_vars": worker_environment(config)},  # type: ignore[call-arg]  # of Ray Train v2
        ),
    )
    log.info(f"starting {wanted.most} workers, which load the model")
    with Follower(run_dir / "metrics.jsonl", attempt, config.tracking.log_every) as follower:
        forget = partial(shutil.rmtree, records, ignore_errors=True)
        try:
            with watched_head(ray_address(config), (follower.stop, forget)):
                result = trainer.fit()
        except Exception as error:
            raise as_sft_error(error, _stepped(run_dir, begin)) from error
    returned: dict[str, Any] = result.return_value or {}  # type: ignore[attr-defined]
    return RunResult(run_dir=run_dir, **returned)


def _stepped(run_dir: Path, begin: float) -> bool:
    """Whether a step was done since `begin`, seconds since 1970."""
    try:
        return any(step.time >= begin for step in read(run_dir / "metrics.jsonl", Step))
    except (OSError, SftError):
        return True


def _lock(run: OpenedRun, kept: str | None) -> Any:
    """One driver per run folder: two would write the same checkpoints. The kernel drops the lock with the process."""
    import filelock

    run_dir = run.folder
    lock, wait = filelock.FileLock(run_dir / run_folder.LOCK), LEASE if JOB in os.environ else 0.0
    try:
        run_folder.begin(run_dir, run.config, kept)
        try:
            return lock.acquire(timeout=0)
        except filelock.Timeout:
            if wait:
                said = f"{run_dir} is locked; waiting for {wait:.0f} s, for that may be by a machine which was lost"
                print(said, file=sys.stderr, flush=True)  # noqa: T201
            return lock.acquire(timeout=wait, poll_interval=1.0)
    except filelock.Timeout:
        raise ClusterError(
            "another dist-sft is training in this folder", where=str(run_dir), fix="wait for it, or use another run.dir"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise StorageError(
            f"the run folder cannot be written and locked: {getattr(error, 'strerror', None) or error}",
            where=str(run_dir),
            fix="set run.dir to a folder that you may write",
        ) from error
