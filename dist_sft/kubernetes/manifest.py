"""A run as Kubernetes objects: a ConfigMap with the run file, disruption budgets, and a KubeRay RayJob.

RunConfig -> [ConfigMap, PodDisruptionBudget..., RayJob] -> (text) YAML, or a List in JSON

Fields as in KubeRay 1.7's ray.io/v1.
"""

import hashlib
import importlib.metadata
import json
import re
from typing import Any

from dist_sft.config.kubernetes import KubernetesSection
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError
from dist_sft.kubernetes import pods
from dist_sft.kubernetes.rules import Object, refuse_broken
from dist_sft.kubernetes.shape import ClusterShape, shape
from dist_sft.kubernetes.travel import run_file, trainer_of
from dist_sft.run.opened import OpenedRun

LONGEST_NAME = 47
"""Of a RayJob, by KubeRay: names of its clusters and services have a suffix."""


def render(run: OpenedRun) -> list[Object]:
    """All objects of a run, in the order in which they are to be made.

    Raises:
        ConfigError: no `kubernetes` section, workers that fill no equal pods, paths that pods do not see, a secret.
        ClusterError: a manifest that KubeRay's operator would refuse.
    """
    config = run.config
    settings = _settings(config)
    name, text, size = settings.name or _slug(config.run.name), run_file(run, settings), shape(config, settings)
    run_map = _run_map(name, settings, text)
    job = _ray_job(name, settings, _ray_cluster(name, settings, size, trainer_of(config), run_map["metadata"]["name"]))
    objects = [run_map, *_budgets(name, settings, size), job]
    refuse_broken(objects)
    return objects


def render_cluster(run: OpenedRun) -> list[Object]:
    """A RayCluster with the pods of a run, which stays, and takes runs by `ray job submit`. Raises as `render`."""
    config = run.config
    settings = _settings(config)
    name, size = settings.name or _slug(config.run.name), shape(config, settings)
    cluster = _object(
        "ray.io/v1", "RayCluster", name, settings, spec=_ray_cluster(name, settings, size, trainer_of(config), None)
    )
    cluster["metadata"]["labels"] |= _scheduling(name, settings)
    objects = [*_budgets(name, settings, size), cluster]
    refuse_broken(objects)
    return objects


def _settings(config: RunConfig) -> KubernetesSection:
    if config.kubernetes is None:
        raise ConfigError(
            "the run file has no section for Kubernetes",
            where="kubernetes",
            fix="add kubernetes: {image: REGISTRY/dist-sft:VERSION}, or the override kubernetes.image=...",
        )
    return config.kubernetes


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_NAME].strip("-")
    if not re.match("[a-z]", slug):
        raise ConfigError(
            f"no name of a RayJob can be made of run.name, '{name}'",
            where="run.name",
            fix="set kubernetes.name, of a-z, 0-9 and -, with a letter first",
        )
    return slug


def _object(api: str, kind: str, name: str, settings: KubernetesSection, **rest: Any) -> Object:
    metadata = {"name": name, "namespace": settings.namespace, "labels": pods.labels(name, "run")}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}


def _run_map(name: str, settings: KubernetesSection, text: str) -> Object:
    """The run file. Its name tells its content, so that a retry, hours later, cannot read another."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    made = _object("v1", "ConfigMap", name, settings, immutable=True, data={"run.yaml": text})
    made["metadata"]["name"] = f"{name}-{digest}"
    return made


def _budgets(name: str, settings: KubernetesSection, size: ClusterShape) -> list[Object]:
    """Drains of nodes wait for the driver, and take one worker at a time.

    minAvailable as a number: maxUnavailable needs a controller that Kubernetes can count by, which a RayCluster is not.
    """
    wanted = {"head": 1, "worker": size.pods - 1}
    made = []
    for component, least in wanted.items():
        if least:
            selector = {"matchLabels": pods.labels(name, component)}
            spec = {"minAvailable": least, "selector": selector}
            budget = _object("policy/v1", "PodDisruptionBudget", name, settings, spec=spec)
            budget["metadata"]["name"] = f"{name}-{component}"
            made.append(budget)
    return made


def _ray_job(name: str, settings: KubernetesSection, cluster: Object) -> Object:
    spec: Object = {
        # KubeRay hands this line to a shell: nothing in it may mean anything to one
        "entrypoint": f"env --chdir={settings.storage.mount} dist-sft train {pods.RUN_FOLDER}/run.yaml",
        "submissionMode": settings.submission,
        "backoffLimit": settings.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": settings.ttl,
    }
    if settings.deadline:
        spec["activeDeadlineSeconds"] = settings.deadline
    if settings.submission == "K8sJobMode":
        spec["submitterPodTemplate"] = pods.submitter(name, settings)
    spec["rayClusterSpec"] = cluster
    job = _object("ray.io/v1", "RayJob", name, settings, spec=spec)
    job["metadata"]["labels"] |= _scheduling(name, settings)
    return job


def _scheduling(name: str, settings: KubernetesSection) -> dict[str, str]:
    """Labels by which Kueue, Volcano and YuniKorn know the job.

    No `suspend: true` for Kueue, which sets it itself: applied again, it would stop a running job.
    """
    if settings.queue:
        return {"kueue.x-k8s.io/queue-name": settings.queue}
    gang, found = settings.gang, {}
    if gang and gang.scheduler == "volcano":
        if gang.queue:
            found["volcano.sh/queue-name"] = gang.queue
        if settings.priority_class:
            found["ray.io/priority-class-name"] = settings.priority_class
    elif gang:
        found = {"ray.io/gang-scheduling-enabled": "true", "yunikorn.apache.org/app-id": name}
        if gang.queue:
            found["yunikorn.apache.org/queue"] = gang.queue
    return found


def _ray_cluster(
    name: str, settings: KubernetesSection, size: ClusterShape, trainer: str, run_map: str | None
) -> Object:
    token = {"secretName": settings.token_secret} if settings.token_secret else {}
    spec: Object = {
        "rayVersion": settings.ray_version or importlib.metadata.version("ray"),
        "authOptions": {"mode": "token", **token},
    }
    if settings.redis:
        spec["gcsFaultToleranceOptions"] = _redis(settings)
    spec["headGroupSpec"] = {
        "serviceType": "ClusterIP",
        "enableIngress": False,
        # no training worker and no encoder fits here: the head has the driver, and its loss ends the run
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "object-store-memory": str(size.head.object_store)},
        "template": pods.head(name, settings, size.head, run_map),
    }
    group = {
        "groupName": "workers",
        "replicas": size.pods,
        "minReplicas": size.pods,
        "maxReplicas": size.pods,
        "rayStartParams": {
            "num-gpus": str(size.worker.gpus),  # KubeRay finds only resources that end in gpu
            "resources": f"'{json.dumps({trainer: size.ranks})}'",  # quoted: it becomes a word of a shell's command
            "object-store-memory": str(size.worker.object_store),
        },
        "template": pods.worker(name, settings, size.worker, size.pods),
    }
    spec["workerGroupSpecs"] = [group]
    return spec


def _redis(settings: KubernetesSection) -> Object:
    redis = settings.redis
    assert redis
    options: Object = {"redisAddress": redis.address}
    if redis.username:
        options["redisUsername"] = {"value": redis.username}
    if redis.password:
        reference = {"name": redis.password.name, "key": redis.password.key}
        options["redisPassword"] = {"valueFrom": {"secretKeyRef": reference}}
    return options
