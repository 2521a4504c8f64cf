"""Ask the nodes of a Ray cluster, through small tasks that are pinned to them and reserve nothing."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dist_sft.cluster.preflight import network, storage
from dist_sft.cluster.preflight.facts import NodeFacts, look
from dist_sft.cluster.preflight.judge import Finding, judge
from dist_sft.cluster.preflight.network import Reduced
from dist_sft.config.sections import RunConfig
from dist_sft.core.errors import ClusterError
from dist_sft.model.capacity import count_trained
from dist_sft.model.load import load_config
from dist_sft.model.memory import state_bytes

ANSWER = 120.0
"""Seconds in which a node must answer: the first task of a node starts a Python there."""
KNOCK = 5.0
"""Seconds for a connection between two nodes."""


@dataclass
class Report:
    """nodes that would hold workers, what is wrong, and how fast they add up a tensor; None: not tried."""

    nodes: list[NodeFacts]
    findings: list[Finding] = field(default_factory=list)
    reduced: list[Reduced] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "ok": not self.findings,
            "nodes": [asdict(node) for node in self.nodes],
            "findings": [asdict(finding) for finding in self.findings],
            "all_reduce": None if self.reduced is None else [asdict(one) for one in self.reduced],
        }

    def refuse(self) -> None:
        """Raise ClusterError with all that is wrong."""
        if not self.findings:
            return
        first, *rest = self.findings
        more = "".join(f"\n{finding.where}: {finding.what}\n  fix: {finding.fix}" for finding in rest)
        raise ClusterError(first.what, where=first.where, fix=f"{first.fix}{more}")


def preflight(config: RunConfig, run_dir: Path, room: float, short: bool = False) -> Report:
    """Look at every node that could hold a worker; Ray is connected. Raises ClusterError where there is none.

    room: bytes that checkpoints take. short: leave out what takes seconds, the all-reduce between nodes.
    """
    nodes = nodes_for(config)
    ids = [(node["NodeID"], node["NodeManagerAddress"]) for node in nodes]
    asked = [_task(look, id_).remote(id_, address, str(run_dir)) for id_, address in ids]
    answered, findings = _answers(nodes, asked, "look at itself")
    report = Report([_timed(facts) for facts in answered if facts is not None], findings)
    given = {node["NodeID"]: node["Resources"].get("GPU", 0.0) for node in nodes}
    report.findings += judge(report.nodes, given, room)
    report.findings += _storage(report.nodes, str(run_dir))
    report.findings += _ports(report.nodes)
    if not short and len(report.nodes) > 1 and not any(finding.check == "ports" for finding in report.findings):
        _reduce(report, "nccl" if config.cluster.gpus_per_worker else "gloo")
    return report


def checkpoint_room(config: RunConfig) -> float:
    """Bytes that the checkpoints of a run take in run.dir, with the one that is being written."""
    trained = count_trained(load_config(config.model), config.model.tuning).total
    keep = config.checkpoint
    return float(trained * state_bytes(config, stage=1) * (keep.keep + keep.keep_best + 1))


def nodes_for(config: RunConfig) -> list[dict[str, Any]]:
    """Living nodes with what a worker needs, sorted by address. Raises ClusterError where there is none."""
    import ray

    wanted = {"CPU": config.cluster.cpus_per_worker, "GPU": config.cluster.gpus_per_worker}
    found = [
        node for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(kind, 0) >= count for kind, count in wanted.items())
    ]  # fmt: skip
    if not found:
        raise ClusterError(
            f"no node of the cluster has what a worker needs: {wanted['GPU']:g} GPUs and {wanted['CPU']:g} CPUs",
            where="cluster.gpus_per_worker, cluster.cpus_per_worker", fix="see ray status; lower them, or add nodes",
        )  # fmt: skip
    return sorted(found, key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))


def _pinned(node: str) -> dict[str, Any]:
    """Options of a task or an actor that runs on this node, even where all its CPUs are taken."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def _task(function: Callable[..., Any], node: str, **options: Any) -> Any:
    import ray

    return ray.remote(max_retries=0, **_pinned(node), **options)(function)


def _answers(nodes: Sequence[Any], asked: Sequence[Any], what: str) -> tuple[list[Any], list[Finding]]:
    """By node, what it answered, or None; and a finding for each that did not."""
    import ray

    ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
    answers, findings = [], []
    for node, reference in zip(nodes, asked, strict=True):
        where = (
            node.name
            if isinstance(node, NodeFacts)
            else f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        )
        try:
            answers.append(ray.get(reference, timeout=0.1))
        except Exception as error:  # noqa: BLE001  # whatever Ray wraps a task's death in
            answers.append(None)
            cause = "no answer" if isinstance(error, ray.exceptions.GetTimeoutError) else _last_line(error)
            findings.append(
                Finding(
                    "answers",
                    f"it could not {what}: {cause}",
                    where,
                    "see ray logs on the node; install dist-sft there",
                )
            )
    return answers, findings


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _timed(facts: NodeFacts) -> NodeFacts:
    """With its clock against ours, half of the way there and back taken off; by now the node's Python is running."""
    import ray

    began = time.time()
    told = float(ray.get(_task(time.time, facts.node).remote(), timeout=ANSWER))
    return replace(facts, clock=told - (began + time.time()) / 2)


def _storage(nodes: Sequence[NodeFacts], run_dir: str) -> list[Finding]:
    """One file of each node: written, read by all, removed, seen by none."""
    names = {node.node: f"{uuid.uuid4().hex[:12]}-{i}" for i, node in enumerate(nodes)}
    wrote, findings = _answers(
        nodes, [_task(storage.write, n.node).remote(run_dir, names[n.node]) for n in nodes], "write"
    )
    files = []
    for node, written in zip(nodes, wrote, strict=True):
        if written is not None and written.error:
            findings.append(Finding("storage", f"cannot write {storage.SIZE >> 20} MiB into {run_dir}: {written.error}",
                                    node.name, "make room there, or mount the shared storage with the right to write"))  # fmt: skip
        elif written is not None:
            files.append((node, written))
    try:
        read, failed = _answers(
            nodes, [_task(storage.unseen, n.node).remote(run_dir, [w for _, w in files]) for n in nodes], "read"
        )
        findings += failed
        for node, problems in zip(nodes, read, strict=True):
            for author, written in files:
                if problem := (problems or {}).get(written.name):
                    findings.append(Finding(
                        "storage", f"{run_dir}: a file that {author.name} wrote {problem}", node.name,
                        "run.dir must be one storage for all nodes: mount it at the same path everywhere",
                    ))  # fmt: skip
    finally:
        gone, failed = _answers(
            nodes, [_task(storage.remove, n.node).remote(run_dir, names[n.node]) for n in nodes], "remove"
        )
    findings += failed
    for node, problem in zip(nodes, gone, strict=True):
        if problem:
            findings.append(Finding("storage", f"cannot remove its file from {run_dir}: {problem}", node.name,
                                    "old checkpoints are removed, too: give the right to"))  # fmt: skip
    return findings


def _ports(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Every node connects to a port, chosen by the kernel, of every other."""
    import ray

    if len(nodes) < 2:
        return []
    listener = ray.remote(network.Listener)
    actors = [listener.options(max_restarts=0, **_pinned(node.node)).remote(node.address) for node in nodes]
    try:
        ports, findings = _answers(nodes, [actor.port.remote() for actor in actors], "open a port")
        open_ = [(node, (node.address, port)) for node, port in zip(nodes, ports, strict=True) if port is not None]
        asked = [actor.reach.remote([address for _, address in open_], KNOCK) for actor in actors]
        reached, failed = _answers(nodes, asked, "connect to the others")
        findings += failed
        for node, problems in zip(nodes, reached, strict=True):
            for (other, _), problem in zip(open_, problems or (), strict=False):
                if problem and other.node != node.node:
                    findings.append(Finding(
                        "ports", f"cannot connect to {other.name}: {problem}", node.name,
                        "let nodes reach each other on all TCP ports (security group, network policy, firewall)",
                    ))  # fmt: skip
        return findings
    finally:
        for actor in actors:
            ray.kill(actor)


def _reduce(report: Report, backend: str) -> None:
    """A process group with one task of each node. NCCL needs a GPU of each, for a moment."""
    import ray

    nodes = report.nodes
    options = {"num_gpus": 1} if backend == "nccl" else {}
    port = ray.get(_task(network.free_port, nodes[0].node).remote(nodes[0].address), timeout=ANSWER)
    asked = [
        _task(network.all_reduce, node.node, **options).remote(
            i, len(nodes), nodes[0].address, port, backend, network.PATIENCE
        )
        for i, node in enumerate(nodes)
    ]
    answers, failed = _answers(nodes, asked, f"join a {backend} process group")
    report.findings += failed
    report.reduced = [answer or Reduced(0.0, "no answer") for answer in answers]
    for node, one in zip(nodes, report.reduced, strict=True):
        if one.error and not any(finding.where == node.name and finding.check == "answers" for finding in failed):
            report.findings.append(Finding(
                "all-reduce", f"no {backend} all-reduce with the other nodes: {one.error}", node.name,
                f"check {'NCCL' if backend == 'nccl' else 'GLOO'}_SOCKET_IFNAME there (ip -br addr), and the firewall",
            ))  # fmt: skip
