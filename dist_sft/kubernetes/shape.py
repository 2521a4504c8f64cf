"""How many pods a run wants, and what each of them has.

RunConfig (workers, GPUs and CPUs of each, encoders) -> ClusterShape
"""

import math
from dataclasses import dataclass

from dist_sft.config.kubernetes import KubernetesSection, PodSection, mebibytes
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError
from dist_sft.run.resources import encoders_of

SHARE_OF_OBJECTS = 0.7
"""Of /dev/shm that Ray's object store may fill; the rest is NCCL's and gloo's."""


@dataclass(frozen=True, slots=True)
class PodShape:
    """Requests, and limits, of one pod. memory, shared_memory: MiB; the first contains the second."""

    cpus: int
    memory: int
    shared_memory: int
    gpus: int = 0

    @property
    def object_store(self) -> int:
        """Bytes for Ray's objects."""
        return int(self.shared_memory * SHARE_OF_OBJECTS) << 20


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """Of a whole cluster: a head, and `pods` equal pods with `ranks` training workers each."""

    head: PodShape
    worker: PodShape
    pods: int
    ranks: int


def shape(config: RunConfig, settings: KubernetesSection) -> ClusterShape:
    """Equal pods, each full: no GPU is taken that no worker uses.

    Raises:
        ConfigError: the workers cannot be dealt to equal pods, a GPU would be shared by two pods, or /dev/shm is too
        small for what the data service has on its way.
    """
    wanted = config.cluster
    pods = _pods(wanted.most, wanted.gpus_per_worker, settings.gpus_per_node)
    ranks = wanted.most // pods
    encoders = math.ceil(encoders_of(config) / pods)
    reserved = ranks * wanted.cpus_per_worker + encoders * config.service.cpus_per_encoder
    worker = PodShape(
        cpus=settings.worker.cpus or math.ceil(reserved) + 1,
        memory=_memory(settings.worker, ranks),
        shared_memory=mebibytes(settings.worker.shared_memory),
        gpus=round(ranks * wanted.gpus_per_worker),
    )
    if worker.cpus < reserved:
        raise ConfigError(
            f"a pod has {worker.cpus} CPUs, and its {ranks} workers and {encoders} encoders reserve {reserved:g}",
            where="kubernetes.worker.cpus",
            fix="raise it, or remove it",
        )
    if worker.object_store < config.service.budget:
        raise ConfigError(
            f"/dev/shm of a worker pod has room for {worker.object_store} bytes of Ray's objects, and the data service "
            f"may have {config.service.budget} on their way (service.budget)",
            where="kubernetes.worker.shared_memory",
            fix="raise it, or lower service.budget",
        )
    head = PodShape(settings.head.cpus, _memory(settings.head, 1), mebibytes(settings.head.shared_memory))
    return ClusterShape(head, worker, pods, ranks)


def _memory(pod: PodSection, ranks: int) -> int:
    """/dev/shm is memory that counts against the limit."""
    return ranks * mebibytes(pod.memory) + mebibytes(pod.shared_memory)


def _pods(workers: int, gpus: float, gpus_per_node: int) -> int:
    """On CPU each worker has a pod of its own, as a rank on a node has; on GPUs a pod is filled first."""
    if gpus == 0:
        return workers
    most = math.floor(gpus_per_node / gpus)
    if most == 0:
        raise ConfigError(
            f"a worker wants {gpus:g} GPUs, and a node has {gpus_per_node}",
            where="cluster.gpus_per_worker",
            fix=f"use at most {gpus_per_node}, or set kubernetes.gpus_per_node",
        )
    pods = math.ceil(workers / most)
    if workers % pods:
        raise ConfigError(
            f"{workers} workers cannot be dealt to equal pods of at most {most}: GPUs would be taken, and idle",
            where="cluster.workers",
            fix=f"use {workers // pods * pods} or {(workers // pods + 1) * pods} workers, or set "
            "kubernetes.gpus_per_node to a divisor",
        )
    if not (workers // pods * gpus).is_integer():
        raise ConfigError(
            f"{workers // pods} workers of {gpus:g} GPUs share a pod: {workers // pods * gpus:g}, not a whole number",
            where="cluster.gpus_per_worker",
            fix="make cluster.workers a multiple of the workers that share a GPU",
        )
    return pods
