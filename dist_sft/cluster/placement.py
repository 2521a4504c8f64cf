"""Which node each encoder runs on: where it takes no worker's room, and rather not beside GPUs.

nodes of Ray, what a worker and an encoder reserve -> a node for each encoder
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ClusterError
from dist_sft.run.resources import counted, encoder_resources, encoders_of, worker_resources

ROUNDING = 1e-6
"""Of what is reserved; Ray itself counts in steps of 1e-4."""

Resources = Mapping[str, float]


def place_encoders(config: RunConfig, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the nodes of the encoders, which leave room for as many workers as can be.

    Encoders are there before the workers: on nodes of the workers' own choice they could take the room that the last
    worker waits for.

    Args:
        nodes: as ray.nodes() has them.
    Raises:
        ClusterError: the encoders, or the fewest workers beside them, do not fit, so that somebody would wait for ever.
    """
    alive = [node for node in nodes if node["Alive"]]
    worker, encoder, encoders = worker_resources(config), encoder_resources(config), encoders_of(config)
    workers, counts = _spread([node["Resources"] for node in alive], worker, encoder, encoders)
    if sum(counts) < encoders:
        raise ClusterError(
            f"{counted(encoders, 'encoder')} with {_listed(encoder)} each: the nodes have room for {sum(counts)}",
            where=f"service.encoders={encoders}",
            fix="lower service.encoders (0: each worker encodes for itself) or service.cpus_per_encoder, or add a node",
        )
    if workers < (fewest := config.cluster.fewest):
        beside = f", beside {counted(encoders, 'encoder')} with {_listed(encoder)} each" if encoders else ""
        raise ClusterError(
            f"{counted(fewest, 'worker')} with {_listed(worker)} each{beside}, none of them split: the nodes have room "
            f"for {workers:g}",
            where=f"cluster.workers={fewest}",
            fix="lower cluster.workers or what each reserves (cluster.cpus_per_worker, service.cpus_per_encoder), or "
            "add a node",
        )
    return [node["NodeID"] for node, count in zip(alive, counts, strict=True) for _ in range(count)]


def _spread(nodes: Sequence[Resources], worker: Resources, encoder: Resources, most: int) -> tuple[float, list[int]]:
    """Room for workers, and encoders by node: `most`, or as many as fit.

    Of all ways, the one with the most room for workers; of these one with the fewest encoders beside GPUs; of these the
    one that spreads them best.
    """
    best: dict[int, tuple[tuple[float, ...], list[int]]] = {0: ((0.0, 0.0, 0.0), [])}
    for has in nodes:
        fit = int(min(_room(has, encoder), most))
        rooms = [_room(has, worker, less=encoder, times=here) for here in range(fit + 1)]
        beside = float(has.get("GPU", 0.0) > 0)
        found: dict[int, tuple[tuple[float, ...], list[int]]] = {}
        for placed, ((room, spared, even), counts) in best.items():
            for here in range(min(fit, most - placed) + 1):
                way = ((room + rooms[here], spared - here * beside, even - here**2), [*counts, here])
                found[placed + here] = max(way, found.get(placed + here, way))
        best = found
    (room, *_), counts = best[max(best)]
    return room, counts


def _room(has: Resources, each: Resources, less: Resources | None = None, times: int = 0) -> float:
    """How many that reserve `each` fit in; inf for those that reserve nothing. less, times: what is taken before."""
    taken = {name: amount * times for name, amount in (less or {}).items()}
    left = {name: has.get(name, 0.0) - taken.get(name, 0.0) + ROUNDING for name in each}
    return min((left[name] // amount for name, amount in each.items() if amount), default=float("inf"))


def _listed(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing"
