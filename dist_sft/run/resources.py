"""What a run reserves of Ray, for each worker and each member of the data service; and whether there is enough."""

import os
from pathlib import Path

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ClusterError

RAY_STARTED = Path("/tmp/ray/ray_current_cluster")
"""Left by `ray start`, where RAY_TMPDIR names no other folder: anyone on the machine may have written it."""

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
    return ray_address(config) is None


def encoder_cpus(config: RunConfig) -> float:
    """What an encoder reserves: on one machine nothing, for it has little to do beside the workers."""
    return 0.0 if is_local(config) else config.service.cpus_per_encoder


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
