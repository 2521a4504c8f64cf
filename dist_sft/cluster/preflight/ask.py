"""Run something on each node: small Ray tasks and actors that are pinned to it and reserve nothing."""

from collections.abc import Callable, Sequence
from typing import Any

from dist_sft.cluster.preflight.facts import NodeFacts
from dist_sft.cluster.preflight.judge import Finding

ANSWER = 120.0
"""Seconds in which a node must answer: the first task of a node starts a Python there."""


def pinned(node: str) -> dict[str, Any]:
    """Options of a task or an actor that runs on this node, even where all its CPUs are taken."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def task(function: Callable[..., Any], node: str, **options: Any) -> Any:
    """A remote function on this node."""
    import ray

    return ray.remote(max_retries=0, **pinned(node), **options)(function)


def ask(
    nodes: Sequence[NodeFacts],
    what: str,
    function: Callable[..., Any],
    arguments: Callable[[NodeFacts], tuple[Any, ...]],
) -> tuple[list[Any], list[Finding]]:
    """See `answers`."""
    return answers([n.name for n in nodes], what, [task(function, n.node).remote(*arguments(n)) for n in nodes])


def answers(names: Sequence[str], what: str, asked: Sequence[Any]) -> tuple[list[Any], list[Finding]]:
    """By node, what it answered, or None; and a finding for each that did not."""
    import ray

    ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
    found, findings = [], []
    for name, reference in zip(names, asked, strict=True):
        try:
            found.append(ray.get(reference, timeout=0.1))
        except Exception as error:  # noqa: BLE001  # whatever Ray wraps a task's death in
            found.append(None)
            silent = isinstance(error, ray.exceptions.GetTimeoutError)
            cause = f"no answer in {ANSWER:g} s" if silent else _last_line(error)
            findings.append(
                Finding("answers", f"it could not {what}: {cause}", name, "install dist-sft there, and see ray logs")
            )
    return found, findings


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
