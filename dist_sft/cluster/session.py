"""A connection to Ray: which one, with what environment for the workers, and whether it is large enough."""

import logging
import os
import socket
from pathlib import Path

from dist_sft.cluster.build_lock import wait_for_builds
from dist_sft.config.sections import RunConfig
from dist_sft.core.errors import ClusterError

RAY_STARTED = Path("/tmp/ray/ray_current_cluster")
"""Left by `ray start`: a cluster that ray.init joins when no address is given."""

A_LITTLE = 1e-3
"""Of service.resource, for each member: it says where they may be, and CPUs how many."""

WORKERS_PER_ENCODER = 16
"""Of those that train, where service.encoders is not set: a tokenizer is faster than any GPU learns."""


def encoders_of(config: RunConfig) -> int:
    """How many actors encode."""
    wanted = config.service.encoders
    return -(-config.cluster.most // WORKERS_PER_ENCODER) if wanted is None else wanted


def is_local(config: RunConfig) -> bool:
    """Whether a Ray is started on this machine, for this run alone."""
    return ray_address(config) is None and not RAY_STARTED.exists()


def encoder_cpus(config: RunConfig) -> float:
    """What an encoder reserves: on one machine nothing, for it has little to do beside the workers."""
    return 0.0 if is_local(config) else config.service.cpus_per_encoder


def connect(config: RunConfig) -> None:
    """Join the cluster that the run file or RAY_ADDRESS names, or start a local Ray."""
    import ray

    address = ray_address(config)
    if address is None:
        wait_for_builds(fresh=0)
    else:
        _knock(address)
    try:
        ray.init(
            address=address,
            num_cpus=os.cpu_count() if is_local(config) else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address is None else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray cannot be reached: {str(error).splitlines()[0]}",
            where=address or "local Ray",
            fix="check cluster.address and RAY_ADDRESS, and RAY_AUTH_MODE=token with the cluster's token where it asks "
            "for one; or unset the address to start a local Ray",
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


def worker_environment(config: RunConfig) -> dict[str, str]:
    """Variables of every process that trains. One thread per CPU that Ray gives it."""
    threads = str(max(1, int(config.cluster.cpus_per_worker)))
    variables = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    if config.cluster.gpus_per_worker == 0:
        variables |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if config.cluster.interface:
        variables |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), config.cluster.interface)
    return variables


def worker_resources(config: RunConfig) -> dict[str, float]:
    """What Ray reserves for each training worker."""
    wanted = config.cluster
    named = {"GPU": wanted.gpus_per_worker, wanted.resource: 1.0}
    return {"CPU": wanted.cpus_per_worker} | {name: amount for name, amount in named.items() if name and amount}


def service_resources(config: RunConfig) -> dict[str, float]:
    """What Ray reserves for each member of the data service, beside an encoder's CPUs."""
    return {config.service.resource: A_LITTLE} if config.service.resource else {}


def encoder_resources(config: RunConfig) -> dict[str, float]:
    """What Ray reserves for each encoder."""
    return {"CPU": encoder_cpus(config)} | service_resources(config)


def quiet(config: RunConfig) -> None:
    """Ray Train's controller tells at length what our own lines say; and it waits for long where we do not."""
    for name, value in (
        ("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(config.cluster.hang)),
        ("RAY_TRAIN_ENABLE_PRINT_PATCH", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"),
        ("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5"),
    ):
        os.environ.setdefault(name, value)


def check_resources(config: RunConfig, have: dict[str, float], who: str) -> None:
    """Raise ClusterError where the workers and encoders want more GPUs or CPUs than `who` has."""
    wanted, encoders = config.cluster, encoders_of(config)
    for name, each, key in (("GPU", wanted.gpus_per_worker, "gpus"), ("CPU", wanted.cpus_per_worker, "cpus")):
        extra = encoders * encoder_cpus(config) if name == "CPU" else 0.0
        need, there = each * wanted.fewest + extra, have.get(name, 0.0)
        if need > there:
            lower = f"cluster.{key}_per_worker"
            and_encoders = f", {counted(encoders, 'encoder')} with {extra / encoders:g}" if extra else ""
            raise ClusterError(
                f"{counted(wanted.fewest, 'worker')} with {counted(each, name)} each{and_encoders}: {need:g} in all; "
                f"{who} has {there:g}",
                where=f"cluster.workers={wanted.fewest}, {lower}={each:g}",
                fix=(f"lower cluster.workers or {lower}" if wanted.fewest > 1 else f"lower {lower}")
                + (" (0 trains on CPU)" if name == "GPU" else " (0.5 lets two workers share a CPU)")
                + (", set service.encoders=0" if extra else "")
                + ", or set cluster.address to a larger Ray cluster",
            )
    if wanted.resource and have.get(wanted.resource, 0.0) < wanted.fewest:
        raise ClusterError(
            f"{counted(wanted.fewest, 'worker')} with 1 {wanted.resource} each; {who} has "
            f"{have.get(wanted.resource, 0.0):g}",
            where=f"cluster.resource={wanted.resource}",
            fix=f"start nodes with ray start --resources='{{\"{wanted.resource}\": N}}', or leave cluster.resource out",
        )
    if config.service.resource and not have.get(config.service.resource):
        raise ClusterError(
            f"the data service may run only on nodes with {config.service.resource}; {who} has none",
            where=f"service.resource={config.service.resource}",
            fix=f"start nodes with ray start --resources='{{\"{config.service.resource}\": 1}}', or leave "
            "service.resource out",
        )


def counted(number: float, name: str) -> str:
    """As in "1 worker", "2 workers"."""
    return f"{number:g} {name}" if number == 1 else f"{number:g} {name}s"


def ray_address(config: RunConfig) -> str | None:
    """The cluster that the run file or RAY_ADDRESS names; None: a local Ray."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS") or None
