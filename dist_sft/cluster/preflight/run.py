"""Ask the nodes of a Ray cluster, and judge what they say."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dist_sft.cluster.preflight import network, storage
from dist_sft.cluster.preflight.ask import answers, ask, pinned, task
from dist_sft.cluster.preflight.facts import NodeFacts, clock, look, versions
from dist_sft.cluster.preflight.judge import Finding, judge
from dist_sft.cluster.preflight.network import Reduced
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ClusterError, Lines
from dist_sft.estimate.memory import state_bytes
from dist_sft.model.capacity import count_trained
from dist_sft.run.opened import OpenedRun
from dist_sft.run.resources import worker_resources

KNOCK = 5.0
"""Seconds for a connection between two nodes."""


@dataclass
class Report:
    """nodes that could hold workers, what is wrong, and how fast they add up a tensor; None: not tried."""

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
        raise ClusterError(first.what, where=first.where, fix=Lines(f"{first.fix}{more}"))


def preflight(run: OpenedRun, run_dir: Path, short: bool = False) -> Report:
    """Look at every node that could hold a worker; Ray is connected. Raises ClusterError where there is none.

    short: leave out what takes seconds, the all-reduce between nodes.
    """
    config = run.config
    nodes = nodes_for(config)
    ids = [(node["NodeID"], node["NodeManagerAddress"]) for node in nodes]
    names = [f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in nodes]
    asked = [task(look, id_).remote(id_, address, str(run_dir)) for id_, address in ids]
    found, findings = answers(names, "look at itself", asked)
    timed, failed = _timed([facts for facts in found if facts is not None])
    report = Report(timed, findings + failed)
    given = {node["NodeID"]: node["Resources"].get("GPU", 0.0) for node in nodes}
    report.findings += judge(report.nodes, versions(), given, _room(run))
    report.findings += _storage(report.nodes, "run.dir", str(run_dir))
    if config.checkpoint.url:
        report.findings += _storage(report.nodes, "checkpoint.url", config.checkpoint.url)
    ports = _ports(report.nodes)
    report.findings += ports
    if not short and not ports and len(report.nodes) > 1:
        report.reduced, failed = _reduce(report.nodes, "nccl" if config.cluster.gpus_per_worker else "gloo")
        report.findings += failed
    return report


def nodes_for(config: RunConfig) -> list[dict[str, Any]]:
    """Living nodes with what a worker needs, sorted by address. Raises ClusterError where there is none."""
    import ray

    wanted = worker_resources(config)
    found = [
        node
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(kind, 0) >= count for kind, count in wanted.items())
    ]
    if not found:
        raise ClusterError(
            "no node of the cluster has what a worker needs: "
            + ", ".join(f"{count:g} {kind}" for kind, count in wanted.items()),
            where="cluster.gpus_per_worker, cluster.cpus_per_worker, cluster.resource",
            fix="see ray status; lower them, or add nodes",
        )
    return sorted(found, key=lambda node: (node["NodeManagerAddress"], node["NodeID"]))


def _room(run: OpenedRun) -> float:
    """Bytes that the checkpoints of a run take in run.dir, with the one that is being written."""
    config = run.config
    if config.checkpoint.url:
        return 0.0
    trained = count_trained(run.architecture.layout, config.model.tuning).total
    keep = config.checkpoint
    return float(trained * state_bytes(config, stage=1) * (keep.keep + keep.keep_best + 1))


def _timed(nodes: Sequence[NodeFacts]) -> tuple[list[NodeFacts], list[Finding]]:
    """With their clocks against ours, half of the way there and back taken off; by now each node's Python is running.

    Nodes that do not answer any more are left out.
    """
    timed, findings = [], []
    for node in nodes:
        began = time.time()
        (told,), failed = ask([node], "tell the time", clock, lambda _: ())
        if told is not None:
            timed.append(replace(node, clock=told - (began + time.time()) / 2))
        findings += failed
    return timed, findings


def _storage(nodes: Sequence[NodeFacts], key: str, place: str) -> list[Finding]:
    """One file of each node: written, read by all, removed. key: of the setting that names the place."""
    names = {node.node: f"{uuid.uuid4().hex[:12]}-{i}" for i, node in enumerate(nodes)}
    wrote, findings = ask(nodes, f"write into {key}", storage.write, lambda n: (place, names[n.node]))
    for node, written in zip(nodes, wrote, strict=True):
        if written is not None and written.error:
            what = f"cannot write {storage.SIZE >> 20} MiB into {place}: {written.error}"
            fix = "make room there, or mount the shared storage with the right to write"
            if key != "run.dir":
                fix = "let every node reach it, with fsspec's library for it and credentials that may write and remove"
            findings.append(Finding("storage", what, node.name, fix))
    files = {one.name: (node, one) for node, one in zip(nodes, wrote, strict=True) if one is not None and not one.error}
    try:
        read, failed = ask(nodes, f"read {key}", storage.unseen, lambda n: (place, [one for _, one in files.values()]))
    finally:
        gone, left = ask(nodes, "remove its file", storage.remove, lambda n: (place, names[n.node]))
    findings += [*failed, *left]
    for node, written, unseen, problem in zip(nodes, wrote, read, gone, strict=True):
        for name, what in (unseen or {}).items():
            said = f"{place}: a file that {files[name][0].name} wrote {what}"
            fix = f"{key} must be one storage for all nodes: mount it at the same path everywhere"
            findings.append(Finding("storage", said, node.name, fix))
        if problem and written is not None and not written.error:
            said = f"cannot remove its file from {place}: {problem}"
            findings.append(Finding("storage", said, node.name, "old checkpoints are removed, too: give the right to"))
    return findings


def _ports(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Every node connects to a port, chosen by the kernel, of every other."""
    import ray

    listener: Any = ray.remote(network.Listener)
    names = [node.name for node in nodes]
    actors = [listener.options(max_restarts=0, **pinned(node.node)).remote(node.address) for node in nodes]
    try:
        ports, findings = answers(names, "open a port", [actor.port.remote() for actor in actors])
        open_ = [(node, port) for node, port in zip(nodes, ports, strict=True) if port is not None]
        doors = [(node.address, port) for node, port in open_]
        reached, failed = answers(names, "connect", [actor.reach.remote(doors, KNOCK) for actor in actors])
    finally:
        for actor in actors:
            ray.kill(actor)
    for node, problems in zip(nodes, reached, strict=True):
        for (other, _), problem in zip(open_, problems or [""] * len(open_), strict=True):
            if problem:
                fix = "let nodes reach each other on all TCP ports (security group, network policy, firewall)"
                findings.append(Finding("ports", f"cannot connect to {other.name}: {problem}", node.name, fix))
    return [*findings, *failed]


def _reduce(nodes: Sequence[NodeFacts], backend: str) -> tuple[list[Reduced], list[Finding]]:
    """A process group with one task of each node. NCCL needs a GPU of each, for a moment."""
    options = {"num_gpus": 1} if backend == "nccl" else {}
    first, world = nodes[0].address, len(nodes)
    (port,), failed = ask(nodes[:1], "open a port", network.free_port, lambda n: (n.address,))
    if port is None:
        return [Reduced(0.0, "no answer")] * world, failed
    asked = [
        task(network.all_reduce, node.node, **options).remote(i, world, first, port, backend, network.PATIENCE)
        for i, node in enumerate(nodes)
    ]
    found, findings = answers([node.name for node in nodes], f"join a {backend} process group", asked)
    interface = f"{'NCCL' if backend == 'nccl' else 'GLOO'}_SOCKET_IFNAME"
    for node, one in zip(nodes, found, strict=True):
        if one is not None and one.error:
            what = f"no {backend} all-reduce with the other nodes: {one.error}"
            fix = f"check {interface} there (ip -br addr), and the firewall"
            findings.append(Finding("all-reduce", what, node.name, fix))
    return [one or Reduced(0.0, "no answer") for one in found], findings
