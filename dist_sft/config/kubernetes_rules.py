"""Settings of `kubernetes` that are each right, and wrong together."""

from collections.abc import Iterator

from dist_sft.config.document import Path, dotted
from dist_sft.config.problems import Problem
from dist_sft.config.sections import RunSections
from dist_sft.core.redact import is_secret_name, redact_value

OURS = ("HOME", "HF_HOME", "DIST_SFT_CACHE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "PYTHONUNBUFFERED")
"""Variables that the manifest sets by itself."""

OPERATORS = ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
"""Variables that KubeRay sets from fields of their own."""


def kubernetes(config: RunSections) -> Iterator[Problem]:
    """Contradictions in the section, if there is one."""
    if config.kubernetes is None:
        return
    for check in (_queues, _variables, _tolerations):
        yield from check(config)


def _queues(config: RunSections) -> Iterator[Problem]:
    settings = config.kubernetes
    if settings and settings.queue and settings.gang:
        yield Problem(
            ("kubernetes", "gang"),
            "kubernetes.queue is Kueue's, which admits all pods or none, and kubernetes.gang is for "
            f"{settings.gang.scheduler}",
            "remove one of them; a queue of the gang scheduler is kubernetes.gang.queue",
        )


def _variables(config: RunSections) -> Iterator[Problem]:
    """Each variable has one origin, and no secret stands in the run file."""
    origin = dict.fromkeys(OURS, "the manifest") | dict.fromkeys(OPERATORS, "KubeRay")
    for path, value in _all_variables(config):
        name, section = str(path[-1]), dotted(path[:-1])
        if name in origin:
            yield Problem(path, f"{dotted(path)} is set by {origin[name]}, too", "remove it" + _instead(name))
        elif value and (is_secret_name(name) or redact_value(value) != value):
            what = f"{dotted(path)} looks like a secret, and everyone who may read the manifest could read it"
            fix = f"kubectl create secret, and set kubernetes.secrets.{name}: {{name: SECRET, key: KEY}}"
            yield Problem(path, what, fix)
        origin.setdefault(name, section)


def _all_variables(config: RunSections) -> Iterator[tuple[Path, str | None]]:
    """Settings that are variables of the pods, with their values; None for one that a Secret holds."""
    settings = config.kubernetes
    assert settings
    yield from ((("kubernetes", "secrets", name), None) for name in settings.secrets)
    yield from ((("kubernetes", "environment", name), value) for name, value in settings.environment.items())
    if settings.rdma:
        yield from ((("kubernetes", "rdma", "environment", n), value) for n, value in settings.rdma.environment.items())


def _instead(name: str) -> str:
    fields = {
        "RAY_AUTH_TOKEN": "token_secret",
        "GLOO_SOCKET_IFNAME": "interface",
        "NCCL_SOCKET_IFNAME": "interface",
        "RAY_REDIS_ADDRESS": "redis.address",
        "REDIS_PASSWORD": "redis.password",
        "REDIS_USERNAME": "redis.username",
    }
    return f"; set kubernetes.{fields[name]}" if name in fields else ""


def _tolerations(config: RunSections) -> Iterator[Problem]:
    settings = config.kubernetes
    assert settings
    for pods in ("head", "worker"):
        for i, toleration in enumerate(getattr(settings, pods).tolerations):
            key = f"kubernetes.{pods}.tolerations[{i}]"
            path = ("kubernetes", pods, "tolerations", i)
            if (toleration.operator == "Equal") != (toleration.value is not None):
                what = f"{key} has operator {toleration.operator} and {'no' if toleration.value is None else 'a'} value"
                yield Problem(path, what, "write operator: Equal and a value, or neither")
            if toleration.key is None and toleration.operator == "Equal":
                yield Problem(path, f"{key} compares the value of no key", "name the key")
