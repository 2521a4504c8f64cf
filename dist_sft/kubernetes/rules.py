"""What no schema says: the rules by which KubeRay's operator, Kueue and the API server refuse a RayJob or RayCluster.

Read in KubeRay 1.7, ray-operator/controllers/ray/utils/validation.go, and Kueue's documentation of RayJob.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from dist_sft.core.errors import ClusterError

Object = dict[str, Any]

MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
LONGEST = {"RayJob": 47, "RayCluster": 53}
TOKENS_SINCE = (2, 52)
"""Version of Ray."""

KUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_GROUPS = 17
"""Most worker groups of a job that Kueue 0.19 admits."""


def refuse_broken(objects: list[Object]) -> None:
    """Raise ClusterError for the first objects that would be refused, with everything that is wrong with them."""
    for made in objects:
        wrong = list(broken_rules(made))
        if wrong:
            raise ClusterError(
                "KubeRay would refuse this: " + "; ".join(wrong),
                where=f"{made['kind']} {made.get('metadata', {}).get('name', '')}",
                fix="correct the settings under kubernetes that are named, or the manifest",
            )


def broken_rules(made: Object) -> Iterator[str]:
    """Everything wrong with a RayJob or a RayCluster that its schema allows, as sentences; nothing for other kinds."""
    if made.get("kind") not in LONGEST:
        return
    yield from _name(made)
    spec = made.get("spec") or {}
    if made["kind"] == "RayCluster":
        yield from _cluster(spec)
        return
    yield from _job(spec)
    if spec.get("rayClusterSpec"):
        yield from _cluster(spec["rayClusterSpec"])
    if KUEUE in made.get("metadata", {}).get("labels", {}):
        yield from _kueue(spec)


def _name(made: Object) -> Iterator[str]:
    name, longest = made.get("metadata", {}).get("name", ""), LONGEST[made["kind"]]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"the name '{name}' is not of a-z, 0-9 and -, with a letter first"
    if len(name) > longest:
        yield f"the name has {len(name)} characters, more than {longest}"


def _job(spec: Object) -> Iterator[str]:
    mode, shutdown = spec.get("submissionMode", "K8sJobMode"), spec.get("shutdownAfterJobFinishes", False)
    retries, cluster, selector = spec.get("backoffLimit", 0), spec.get("rayClusterSpec"), spec.get("clusterSelector")
    if mode not in MODES:
        yield f"submissionMode is {mode}, not one of {', '.join(MODES)}"
    if not cluster and not selector:
        yield "neither rayClusterSpec nor clusterSelector is set"
    for key in ("suspend", "ttlSecondsAfterFinished"):
        if spec.get(key) and not shutdown:
            yield f"{key} needs shutdownAfterJobFinishes"
    if spec.get("suspend") and selector:
        yield "suspend and clusterSelector exclude each other"
    for key, least in (("ttlSecondsAfterFinished", 0), ("backoffLimit", 0), ("activeDeadlineSeconds", 1)):
        if spec.get(key, least) < least:
            yield f"{key} is {spec[key]}, less than {least}"
    if retries > 0 and (selector or mode == "InteractiveMode"):
        yield f"backoffLimit excludes {'clusterSelector' if selector else mode}"
    if (spec.get("deletionStrategy") or {}).get("deletionRules") and shutdown:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if mode == "SidecarMode":
        yield from _sidecar(spec)
    if not _is_mapping(spec.get("runtimeEnvYAML") or "{}"):
        yield "runtimeEnvYAML is not a YAML mapping"


def _is_mapping(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


def _sidecar(spec: Object) -> Iterator[str]:
    for key in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
        if spec.get(key):
            yield f"SidecarMode and {key} exclude each other"
    head = (spec.get("rayClusterSpec") or {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
    if head.get("restartPolicy", "Never") != "Never":
        yield "SidecarMode needs restartPolicy Never of the head"


def _cluster(spec: Object) -> Iterator[str]:
    head, groups = spec.get("headGroupSpec") or {}, spec.get("workerGroupSpecs") or []
    scaled = bool(spec.get("enableInTreeAutoscaling"))
    yield from _group("head", head)
    names = [group.get("groupName", "") for group in groups]
    if len(set(names)) < len(names):
        yield "two worker groups have the same groupName"
    for group in groups:
        yield from _group(group.get("groupName", ""), group)
        yield from _replicas(group, scaled)
    yield from _redis(spec, head)
    if (spec.get("authOptions") or {}).get("mode") == "token" and _version(spec) < TOKENS_SINCE:
        since = ".".join(map(str, TOKENS_SINCE))
        yield f"authOptions.mode token needs rayVersion {since} or later, not {spec.get('rayVersion')}"
    if not scaled and _environment(head).get("RAY_enable_autoscaler_v2") in ("1", "true"):
        yield "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling"


def _version(spec: Object) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    return tuple(int(part) for part in found.groups()) if found else (0,)


def _group(name: str, group: Object) -> Iterator[str]:
    params, pod = group.get("rayStartParams") or {}, group.get("template", {}).get("spec", {})
    if not pod.get("containers"):
        yield f"group {name} has no container"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(params):
        yield f"group {name} has resources and the same in rayStartParams"
    if "labels" in params:
        yield f"group {name} has labels in rayStartParams"
    yield from _pod(name, pod)


def _pod(name: str, pod: Object) -> Iterator[str]:
    """What the API server would say when the operator makes the pod: too late for whoever applied the job."""
    volumes = [volume["name"] for volume in pod.get("volumes", [])]
    if len(set(volumes)) < len(volumes):
        yield f"group {name} has two volumes of the same name"
    for container in pod.get("containers", []):
        mounts = container.get("volumeMounts", [])
        unknown = sorted({mount["name"] for mount in mounts} - set(volumes))
        if unknown:
            yield f"group {name} mounts {', '.join(unknown)}, and there is no such volume"
        variables = [variable["name"] for variable in container.get("env", [])]
        twice = sorted({variable for variable in variables if variables.count(variable) > 1})
        if twice:
            yield f"group {name} sets {', '.join(twice)} twice"
        limits, requests = (container.get("resources", {}).get(kind, {}) for kind in ("limits", "requests"))
        apart = sorted(key for key in requests if "/" in key and limits.get(key) != requests[key])
        if apart:
            yield f"group {name} requests {', '.join(apart)} without the same limit"


def _replicas(group: Object, scaled: bool) -> Iterator[str]:
    name, least, most = group.get("groupName", ""), group.get("minReplicas"), group.get("maxReplicas")
    if least is None or most is None:
        if not scaled:
            yield f"group {name} needs minReplicas and maxReplicas without autoscaling"
        return
    if not 0 <= least <= group.get("replicas", least) <= most:
        yield f"group {name} has not 0 <= minReplicas <= replicas <= maxReplicas"


def _redis(spec: Object, head: Object) -> Iterator[str]:
    options, variables, params = spec.get("gcsFaultToleranceOptions"), _environment(head), head.get("rayStartParams")
    if options and options.get("backend", "redis") == "redis" and options.get("storage"):
        yield "gcsFaultToleranceOptions.storage is for the backend rocksdb"
    if options and "redis-password" in (params or {}):
        yield "redis-password belongs into gcsFaultToleranceOptions, not into rayStartParams"
    for variable in ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"):
        if variable in variables and (options or variable != "REDIS_PASSWORD"):
            yield f"{variable} belongs into gcsFaultToleranceOptions, not into the head's environment"
    if "redis-username" in (params or {}):
        yield "redis-username belongs into gcsFaultToleranceOptions, not into rayStartParams"


def _environment(group: Object) -> dict[str, str | None]:
    """Of the Ray container, which is the first."""
    containers = group.get("template", {}).get("spec", {}).get("containers") or [{}]
    return {variable["name"]: variable.get("value") for variable in containers[0].get("env", [])}


def _kueue(spec: Object) -> Iterator[str]:
    cluster = spec.get("rayClusterSpec") or {}
    if not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue needs shutdownAfterJobFinishes"
    if spec.get("clusterSelector"):
        yield "Kueue admits no job on a cluster that is there already (clusterSelector)"
    if len(cluster.get("workerGroupSpecs") or []) > KUEUE_GROUPS:
        yield f"Kueue admits at most {KUEUE_GROUPS} worker groups"
