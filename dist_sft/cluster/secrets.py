"""Secrets of a run: known by the names of environment variables, never by value.

Whatever a job is submitted with (command, runtime_env, metadata) the jobs API shows to whoever may ask. So values are
put into the environment of the cluster's nodes by whoever starts them, and a run only names what it must find there.
"""

import os
import re
from collections.abc import Sequence

from dist_sft.cluster.preflight.ask import pinned
from dist_sft.core.errors import ClusterError, ConfigError

ANSWER = 120.0
"""Seconds for every node to start a process and look."""


def secret_names(given: Sequence[str]) -> tuple[str, ...]:
    """What was given, if it is names and nothing else. Raises ConfigError, which repeats no value."""
    for text in given:
        name = text.partition("=")[0]
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError("not the name of an environment variable", where="--secret", fix="e.g. WANDB_API_KEY")
        if "=" in text:
            raise ConfigError(
                "a secret is given by its name alone: its value would be shown to whoever may list jobs",
                where=f"--secret {name}=...",
                fix=f"write --secret {name}, and set {name} where the cluster's nodes are started",
            )
    return tuple(dict.fromkeys(given))


def missing(names: Sequence[str]) -> list[str]:
    """Names without a value in the environment of this process."""
    return [name for name in names if not os.environ.get(name)]


def refuse_missing(names: Sequence[str]) -> None:
    """Raise ClusterError where a node of the cluster that this process is connected to lacks one of the variables."""
    import ray

    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    answers = [ray.remote(**pinned(node))(missing).remote(names) for node in nodes]
    try:
        lacking = dict(zip(nodes.values(), ray.get(answers, timeout=ANSWER), strict=True))
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"not every node could be asked for its variables: {str(error).splitlines()[0]}",
            where=", ".join(nodes.values()),
            fix="look at the nodes with ray status; the same command may be given again",
        ) from error
    if wrong := {node: names for node, names in lacking.items() if names}:
        first = next(iter(wrong.values()))
        raise ClusterError(
            "nodes lack variables that the run needs",
            where="; ".join(f"node {node}: {', '.join(names)}" for node, names in wrong.items()),
            fix=f"set {first[0]} in the environment in which ray start runs there (in Kubernetes: env with "
            "secretKeyRef), and submit again",
        )
