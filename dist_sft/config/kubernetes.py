"""kubernetes: where and how `dist-sft rayjob` lets a run happen. Nothing of it changes what is learned.

What Ray and the run need of a pod is derived from `cluster` and `service`; here stands what only a person knows: the
image, the claim, the names of secrets, which nodes. No setting holds a secret, only where Kubernetes keeps one.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from dist_sft.config.section import Section, matching

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_PREFIX = r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?"

Size = Annotated[str, matching(r"[1-9]\d*(Mi|Gi|Ti)", "a size such as 512Mi, 64Gi or 1Ti")]
JobName = Annotated[
    str, matching(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", "a name of at most 47 of a-z, 0-9 and -, with a letter first")
]
Label = Annotated[str, matching(_LABEL, "a name of at most 63 of a-z, 0-9 and -")]
Name = Annotated[str, matching(rf"{_LABEL}(\.{_LABEL})*", "a name of a-z, 0-9, - and .")]
Key = Annotated[str, matching(r"[-._a-zA-Z0-9]{1,253}", "a key of letters, digits, -, _ and .")]
Variable = Annotated[str, matching(r"[A-Za-z_]\w*", "a name of an environment variable")]
Qualified = Annotated[
    str, matching(_PREFIX + r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?", "a name such as nvidia.com/gpu or rdma/hca")
]
LabelValue = Annotated[str, matching(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", "a value of a label")]
Mount = Annotated[str, matching(r"(/[A-Za-z0-9._-]+)+", "an absolute path of letters, digits, ., _ and -")]
Image = Annotated[
    str,
    matching(
        r"[a-z0-9][\w.:/-]*(:(?!latest@|latest$)[\w.-]+|@sha256:[0-9a-f]{64})",
        "an image with a tag other than latest, or with @sha256:..., so that every node and every retry runs the same",
    ),
]

MEBIBYTES = {"Mi": 1, "Gi": 1 << 10, "Ti": 1 << 20}


def mebibytes(size: str) -> int:
    """A Size in MiB."""
    return int(size[:-2]) * MEBIBYTES[size[-2:]]


def as_size(number: int) -> str:
    """MiB as a Size, in GiB where they are whole."""
    return f"{number // 1024}Gi" if number % 1024 == 0 else f"{number}Mi"


class SecretKey(Section):
    """One key of a Secret that is in the namespace already."""

    name: Name = Field(description="of the Secret")
    key: Key = Field(description="in it")


class Toleration(Section):
    """Of a taint, as Kubernetes has it."""

    key: Qualified | None = Field(default=None, description="none: every taint")
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class PodSection(Section):
    """What the pods of one kind have, and where they may run."""

    memory: Size
    shared_memory: Size = Field(default="8Gi", description="of /dev/shm, added to memory: Ray's objects, NCCL, gloo")
    scratch: Size = Field(default="64Gi", description="of the node's disk, as /tmp: token store, Ray's logs, builds")
    cpus: PositiveInt | None = None
    node_selector: dict[Qualified, LabelValue] = Field(default={}, description="labels of the nodes")
    tolerations: tuple[Toleration, ...] = ()


class HeadSection(PodSection):
    """kubernetes.head: Ray's head and the driver of the run; no training worker, no encoder, no GPU."""

    memory: Size = "16Gi"
    shared_memory: Size = "2Gi"
    scratch: Size = "32Gi"
    cpus: PositiveInt = 4


class WorkerSection(PodSection):
    """kubernetes.worker: the pods that train and encode, one on each node."""

    memory: Size = Field(default="32Gi", description="of host memory for each training worker of the pod")
    cpus: PositiveInt | None = Field(
        default=None, description="of a pod; none: what its workers and encoders reserve, and 1 for Ray itself"
    )
    runtime_class: Name | None = Field(default=None, description="e.g. nvidia, where that is not the nodes' default")


class StorageSection(Section):
    """kubernetes.storage: a claim that all pods mount (ReadWriteMany); relative paths of the run file begin there."""

    claim: Name = "dist-sft"
    mount: Mount = "/mnt/dist-sft"


class RdmaSection(Section):
    """kubernetes.rdma: InfiniBand or RoCE for NCCL."""

    resource: Qualified = Field(default="rdma/hca", description="what the device plugin calls it")
    count: PositiveInt = Field(default=1, description="for each pod")
    networks: str | None = Field(default=None, description="annotation k8s.v1.cni.cncf.io/networks of Multus")
    environment: dict[Variable, str] = Field(default={}, description="e.g. {NCCL_IB_HCA: mlx5, NCCL_IB_GID_INDEX: '3'}")


class GangSection(Section):
    """kubernetes.gang: all pods or none; the KubeRay operator must run with batchScheduler.name of this scheduler."""

    scheduler: Literal["volcano", "yunikorn"]
    queue: Annotated[str, matching(r"[\w.-]{1,63}", "a name of a queue")] | None = None


class RedisSection(Section):
    """kubernetes.redis: an outside Redis that keeps the state of Ray's head.

    With it a new head goes on with the old pods. The driver of a RayJob dies with the head all the same, and the job is
    tried again on a new cluster: it is worth most for a cluster that stays.
    """

    address: Annotated[str, matching(r"(rediss?://)?[\w.-]+:\d+", "host:port, or redis://host:port")]
    username: str | None = None
    password: SecretKey | None = None


class KubernetesSection(Section):
    """kubernetes: of `dist-sft rayjob`."""

    image: Image = Field(description="with this dist_sft and its pinned packages: see cluster/Dockerfile")
    name: JobName | None = Field(default=None, description="of the RayJob; none: from run.name")
    namespace: Label = "dist-sft"
    image_pull_secrets: tuple[Name, ...] = ()
    service_account: Name | None = Field(default=None, description="none: the namespace's default; no token is mounted")
    user: PositiveInt = Field(default=1000, description="id of user and group in all containers: never 0, root")
    gpus_per_node: PositiveInt = Field(default=8, description="one worker pod takes so many, or fewer if all fit in it")
    gpu_resource: Qualified = "nvidia.com/gpu"
    head: HeadSection = HeadSection()
    worker: WorkerSection = WorkerSection()
    storage: StorageSection = StorageSection()
    secrets: dict[Variable, SecretKey] = Field(default={}, description="e.g. {HF_TOKEN: {name: hub, key: token}}")
    environment: dict[Variable, str] = Field(default={}, description="of the Ray pods; never a secret")
    interface: str = Field(default="eth0", description="network interface of gloo, and of NCCL's first contact")
    rdma: RdmaSection | None = None
    near: Qualified | None = Field(
        default="topology.kubernetes.io/zone", description="label of nodes that worker pods should have in common"
    )
    queue: Label | None = Field(default=None, description="LocalQueue of Kueue, which starts the job when it fits")
    gang: GangSection | None = None
    priority_class: Name | None = None
    redis: RedisSection | None = None
    ray_version: str | None = Field(default=None, description="in the image; none: that of this machine")
    token_secret: Name | None = Field(
        default=None, description="Secret with Ray's token as auth_token; none: KubeRay makes one for each cluster"
    )
    submission: Literal["K8sJobMode", "HTTPMode", "SidecarMode"] = Field(
        default="K8sJobMode",
        description="how KubeRay submits; K8sJobMode: by a pod, whose log is the run's; SidecarMode: by a container of "
        "KubeRay's own making in the head's pod, which namespaces of the restricted policy refuse",
    )
    retries: NonNegativeInt = Field(
        default=3, description="new clusters after a failure (backoffLimit); each resumes from the newest checkpoint"
    )
    ttl: NonNegativeInt = Field(default=60, description="seconds that the pods, and their GPUs, stay after the end")
    deadline: PositiveInt | None = Field(default=None, description="seconds for the whole job, queueing included")
    drain: PositiveInt = Field(
        default=25,
        description="seconds that a pod that must go leaves its workers for a checkpoint; spot nodes give 30",
    )
