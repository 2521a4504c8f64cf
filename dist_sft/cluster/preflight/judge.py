"""The rules: what nodes said of themselves and of each other ─> findings. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dist_sft.cluster.preflight.facts import NodeFacts

SKEW = 2.0
"""Seconds between two clocks: checkpoints and logs are put in order by them."""
FILES = 4096
"""Open files of a process: a rank holds sockets to all others, Ray's and its shards."""
SHM_PER_GPU = 1 << 30
"""Bytes of /dev/shm for each GPU: what NCCL's manual asks for; a container has 64 MiB unless it is told."""
SHM = 128 << 20
"""And of any node at all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """what is wrong, where (node), and how to mend it. check: a short name of the rule."""

    check: str
    what: str
    where: str
    fix: str


def judge(nodes: Sequence[NodeFacts], ours: dict[str, str], gpus: dict[str, float], room: float) -> list[Finding]:
    """All that is wrong with what nodes say of themselves.

    Args:
        ours: versions where the run is started.
        gpus: that Ray gives away, by node.
        room: bytes that checkpoints will take in run.dir.
    """
    rules = (_versions(nodes, ours), _clocks(nodes), _disk(nodes, room), _shm(nodes, gpus), _gpus(nodes, gpus))
    return [finding for rule in (*rules, _files(nodes)) for finding in rule]


def _versions(nodes: Sequence[NodeFacts], ours: dict[str, str]) -> Iterator[Finding]:
    """Against those of who asks; of what he has not got, against the most usual."""
    for package in dict.fromkeys(name for node in nodes for name in node.versions):
        have = [node.versions.get(package, "not installed") for node in nodes]
        usual = ours.get(package) or Counter(have).most_common(1)[0][0]
        for node, version in zip(nodes, have, strict=True):
            if version != usual:
                yield Finding(
                    "versions", f"{package} is {version} there, and {usual} where the run is started", node.name,
                    f"install {package} {usual}: the same image, or tools/setup, on every node",
                )  # fmt: skip


def _clocks(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Against the clock of who asks: the one that is off may be that."""
    for node in nodes:
        if abs(node.clock) > SKEW:
            side = "ahead of" if node.clock > 0 else "behind"
            yield Finding(
                "clock", f"its clock is {abs(node.clock):.0f} s {side} that of the node that asks", node.name,
                "run an NTP daemon on every node (chronyc tracking)",
            )  # fmt: skip


def _disk(nodes: Sequence[NodeFacts], room: float) -> Iterator[Finding]:
    for node in nodes:
        if node.storage is None:
            yield Finding(
                "disk", f"run.dir cannot be looked at: {node.storage_error}", node.name, "mount the storage there"
            )
        elif node.storage + node.held < room:
            there = f", of which {_mib(node.held)} are there" if node.held else ""
            yield Finding(
                "disk", f"{_mib(node.storage)} free in run.dir, and checkpoints take {_mib(room)}{there}", node.name,
                "make room, lower checkpoint.keep, or set run.dir to a larger disk",
            )  # fmt: skip


def _shm(nodes: Sequence[NodeFacts], gpus: dict[str, float]) -> Iterator[Finding]:
    for node in nodes:
        wanted = max(SHM, SHM_PER_GPU * gpus.get(node.node, 0))
        if node.shm < wanted:
            yield Finding(
                "shm", f"/dev/shm has {_mib(node.shm)}, and {_mib(wanted)} are wanted", node.name,
                "docker run --shm-size, or an emptyDir of medium Memory mounted at /dev/shm in Kubernetes",
            )  # fmt: skip


def _gpus(nodes: Sequence[NodeFacts], gpus: dict[str, float]) -> Iterator[Finding]:
    models = Counter(name for node in nodes for name in node.gpus)
    usual = models.most_common(1)[0][0] if models else ""
    for node in nodes:
        if (given := gpus.get(node.node, 0)) > len(node.gpus):
            yield Finding(
                "gpus", f"Ray gives away {given:g} GPUs, and the driver (nvidia-smi) sees {len(node.gpus)}", node.name,
                "see nvidia-smi there, take the node out, or start its Ray with the right --num-gpus",
            )  # fmt: skip
        for other in dict.fromkeys(name for name in node.gpus if name != usual):
            yield Finding(
                "gpus", f"a {other}, and most GPUs are {usual}: all ranks would wait for the slowest", node.name,
                "run on nodes of one kind, by Ray labels or a node selector",
            )  # fmt: skip


def _files(nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    for node in nodes:
        if node.files < FILES:
            yield Finding(
                "files", f"a process may open {node.files} files, and {FILES} are wanted", node.name,
                "raise it before Ray starts: ulimit -n 65536, or LimitNOFILE of its service",
            )  # fmt: skip


def _mib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
