"""Run `assembly.work` on as many ranks as the run file asks for, through Ray Train.

RunConfig -> Ray (a cluster's, or a local one) -> TorchTrainer -> work on every rank -> RunResult
"""

import logging
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_sft.cluster import run_folder
from dist_sft.cluster.build_lock import wait_for_builds
from dist_sft.cluster.progress import Follower
from dist_sft.config.deepspeed import portable
from dist_sft.config.sections import RunConfig
from dist_sft.core.errors import ClusterError, SftError, StorageError


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    outcome  "finished" or "stopped early"
    ledger   rows that were dropped or cut, by reason
    """

    outcome: str
    run_dir: Path
    ledger: dict[str, int]
    steps: int
    resumed_at: int


def train(config: RunConfig) -> RunResult:
    """Run, or go on with, what a run file describes. Raises SftError; whatever a rank raised arrives as itself.

    Ctrl-C is a KeyboardInterrupt here: Ray is shut down, and the newest whole checkpoint stays.
    """
    import ray

    _quiet()
    run_dir = run_folder.locate(config)
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(run_dir)})})
    with _lock(run_dir):
        started = not ray.is_initialized()
        if started:
            _connect(config)
        try:
            check_resources(config, ray.cluster_resources(), "Ray")
            return _fit(config, run_dir)
        finally:
            if started:
                ray.shutdown()


def _fit(config: RunConfig, run_dir: Path) -> RunResult:
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    attempt, wanted = uuid.uuid4().hex[:12], config.cluster
    gpu = wanted.gpus_per_worker > 0

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray's handler would swallow Ctrl-C and report a dead actor; Python's raises KeyboardInterrupt."""

    trainer = Trainer(
        _train_function,  # type: ignore[arg-type]  # what rank 0 returns is result.return_value
        train_loop_config={
            "settings": portable(config).model_dump(mode="json"),
            "attempt": attempt,
            "folder": str(Path.cwd()),
        },
        scaling_config=ScalingConfig(
            num_workers=wanted.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": wanted.cpus_per_worker, **({"GPU": wanted.gpus_per_worker} if gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RayRunConfig(
            name=f"{config.run.name}-{attempt}",
            storage_path=str(run_dir / "ray"),
            failure_config=FailureConfig(max_failures=wanted.max_failures),
        ),
    )
    with Follower(run_dir / "metrics.jsonl", attempt, config.tracking.log_every):
        try:
            result = trainer.fit()
        except Exception as error:
            raise _cause(error) from error
    returned: dict[str, Any] = result.return_value or {}  # type: ignore[attr-defined]
    return RunResult(run_dir=run_dir, **returned)


def _train_function(loop_config: dict[str, Any]) -> dict[str, Any]:
    """Runs in each Ray Train worker; imports there, for the driver needs neither torch nor DeepSpeed."""
    from dist_sft.cluster.assembly import work

    folder = loop_config["folder"]
    if Path(folder).is_dir():  # Ray Train starts workers in a folder of its own; a run file's paths are the driver's
        os.chdir(folder)
    return work(loop_config["settings"], loop_config["attempt"])


def _connect(config: RunConfig) -> None:
    """Join the cluster that the run file or RAY_ADDRESS names, or start a local Ray."""
    import ray

    address = ray_address(config)
    if address is None:
        wait_for_builds(fresh=0)
    else:
        _knock(address)
    environment = _worker_environment(config)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address is None else None,
            runtime_env={"env_vars": environment},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray cannot be reached: {str(error).splitlines()[0]}",
            where=address or "local Ray",
            fix="check cluster.address and RAY_ADDRESS, or unset both to start a local Ray",
        ) from error


def _knock(address: str) -> None:
    """Raise ClusterError where nobody listens: Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # "auto", "local"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers: {getattr(error, 'strerror', None) or error}",
            where=address,
            fix="check cluster.address and RAY_ADDRESS (host:6379, or ray://host:10001), or unset both to start a "
            "local Ray",
        ) from error


def _worker_environment(config: RunConfig) -> dict[str, str]:
    """Variables of every worker. One thread per CPU that Ray gives it."""
    threads = str(max(1, int(config.cluster.cpus_per_worker)))
    variables = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    if config.cluster.gpus_per_worker == 0:
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return variables


def _quiet() -> None:
    """Ray Train's controller tells at length what our own lines say."""
    for name, value in (
        ("RAY_TRAIN_ENABLE_PRINT_PATCH", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"),
        ("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5"),
    ):
        os.environ.setdefault(name, value)


def check_resources(config: RunConfig, have: dict[str, float], who: str) -> None:
    """Raise ClusterError where the workers want more GPUs or CPUs than `who` has."""
    wanted = config.cluster
    for name, each, key in (("GPU", wanted.gpus_per_worker, "gpus"), ("CPU", wanted.cpus_per_worker, "cpus")):
        need, there = each * wanted.workers, have.get(name, 0.0)
        if need > there:
            lower = f"cluster.{key}_per_worker"
            raise ClusterError(
                f"{_count(wanted.workers, 'worker')} with {_count(each, name)} each: {need:g} in all; "
                f"{who} has {there:g}",
                where=f"cluster.workers={wanted.workers}, {lower}={each:g}",
                fix=(f"lower cluster.workers or {lower}" if wanted.workers > 1 else f"lower {lower}")
                + (" (0 trains on CPU)" if name == "GPU" else " (0.5 lets two workers share a CPU)")
                + ", or set cluster.address to a larger Ray cluster",
            )


def _count(number: float, name: str) -> str:
    return f"{number:g} {name}" if number == 1 else f"{number:g} {name}s"


def ray_address(config: RunConfig) -> str | None:
    """The cluster that the run file or RAY_ADDRESS names; None: a local Ray."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS") or None


def _cause(error: BaseException) -> SftError:
    """The user's error inside what Ray wraps around it; a worker that died without one is an error of the cluster."""
    seen: list[BaseException] = [error]
    for current in seen:
        if isinstance(current, SftError):
            return current
        inner = [
            *getattr(current, "worker_failures", {}).values(),
            getattr(current, "controller_failure", None),
            getattr(current, "cause", None),
            current.__cause__,
        ]
        seen += [e for e in inner if isinstance(e, BaseException) and e not in seen]
    return ClusterError(
        f"a worker failed: {error}",
        fix="the newest whole checkpoint is untouched: run the same command again to go on from it",
    )


def _lock(run_dir: Path) -> Any:
    """One driver per run folder: two would write the same checkpoints. The kernel drops the lock with the process."""
    import filelock

    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(run_dir / ".lock", timeout=0).acquire()
    except filelock.Timeout:
        raise ClusterError(
            "another dist-sft is training in this folder", where=str(run_dir), fix="wait for it, or use another run.dir"
        ) from None
    except OSError as error:
        raise StorageError(
            f"the run folder cannot be written: {error.strerror or error}",
            where=str(run_dir),
            fix="set run.dir to a folder that you may write",
        ) from error
