"""The pods of a RayJob: what the head, the workers and the submitter run, mount and may do.

KubeRay adds the command (`ray start ...`), probes, the token and the address of the head.
"""

from collections.abc import Mapping
from typing import Any

from dist_sft.config.kubernetes import KubernetesSection, PodSection, as_size
from dist_sft.kubernetes.shape import PodShape

RUN_FOLDER = "/etc/dist-sft"
"""Where the head finds the run file."""

SCRATCH = "/tmp"
"""The only folder of a container, besides claims, that can be written."""

DRAIN = """\
training() {{ grep -qs '[R]ayTrainWorker' /proc/[0-9]*/cmdline; }}
training || exit 0
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "$HOSTNAME is being stopped" \
--deadline-remaining-seconds {seconds}
for _ in $(seq {seconds}); do training || exit 0; sleep 1; done
"""
"""Before a worker pod is stopped: tell Ray, and wait until the training workers are gone or the time is over.

KubeRay does not. A pod that trains nothing, as after the end of a run, stops at once.
"""

GRACE = 35
"""Seconds from the end of the drain to SIGKILL: an upload of a checkpoint, and Ray's own end."""


def labels(name: str, component: str) -> dict[str, str]:
    """Of every pod and object of a run. component: head, worker, submitter or run.

    Not app.kubernetes.io/name: that is KubeRay's, and the services that it makes select pods by it.
    """
    return {
        "app.kubernetes.io/part-of": "dist-sft",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": component,
    }


def head(name: str, settings: KubernetesSection, pod: PodShape, run_map: str | None) -> dict[str, Any]:
    """Template of the head's pod. run_map: ConfigMap with the run file; None where runs come later."""
    container = _ray_container("ray-head", settings, pod, settings.head, [])
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    volumes = _volumes(settings.head, settings)
    if run_map:
        container["volumeMounts"].append({"name": "run", "mountPath": RUN_FOLDER, "readOnly": True})
        volumes.append({"name": "run", "configMap": {"name": run_map}})
    spec = _pod_spec(settings, settings.head, container, volumes)
    return {"metadata": {"labels": labels(name, "head")}, "spec": spec}


def worker(name: str, settings: KubernetesSection, pod: PodShape, pods: int) -> dict[str, Any]:
    """Template of the pods that train."""
    container = _ray_container("ray-worker", settings, pod, settings.worker, _network(settings, pod))
    drain = DRAIN.format(seconds=settings.drain)
    container["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/bash", "-c", drain]}}}
    resources: dict[str, Any] = {}
    if pod.gpus:
        resources[settings.gpu_resource] = str(pod.gpus)
    if settings.rdma:
        resources[settings.rdma.resource] = str(settings.rdma.count)
    for kind in ("requests", "limits"):
        container["resources"][kind].update(resources)
    spec = _pod_spec(settings, settings.worker, container, _volumes(settings.worker, settings))
    if settings.worker.runtime_class:
        spec["runtimeClassName"] = settings.worker.runtime_class
    spec["terminationGracePeriodSeconds"] = settings.drain + GRACE
    spec.update(_places(name, settings, pod, pods))
    metadata: dict[str, Any] = {"labels": labels(name, "worker")}
    if settings.rdma and settings.rdma.networks:
        metadata["annotations"] = {"k8s.v1.cni.cncf.io/networks": settings.rdma.networks}
    return {"metadata": metadata, "spec": spec}


def submitter(name: str, settings: KubernetesSection) -> dict[str, Any]:
    """Template of the pod that hands the job in and follows its log.

    KubeRay's own has no security context, so a namespace of the restricted policy refuses it.
    """
    size = {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        "image": settings.image,
        "env": [{"name": "HOME", "value": SCRATCH}],
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": _confined(),
        "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
    }
    scratch = {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}
    spec = _pod_spec(settings, settings.head, container, [scratch]) | {"restartPolicy": "Never"}
    return {"metadata": {"labels": labels(name, "submitter")}, "spec": spec}


def _pod_spec(
    settings: KubernetesSection, where: PodSection, container: dict[str, Any], volumes: list[dict[str, Any]]
) -> dict[str, Any]:
    """No root, no API token, no new privileges; the volumes' group may write."""
    spec: dict[str, Any] = {"automountServiceAccountToken": False}
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if where.node_selector:
        spec["nodeSelector"] = dict(where.node_selector)
    if where.tolerations:
        spec["tolerations"] = [toleration.model_dump(exclude_none=True) for toleration in where.tolerations]
    spec["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": settings.user,
        "runAsGroup": settings.user,
        "fsGroup": settings.user,
        "fsGroupChangePolicy": "OnRootMismatch",  # else the kubelet walks the whole claim at each start
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec["containers"] = [container]
    spec["volumes"] = volumes
    return spec


def _confined() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _ray_container(
    name: str, settings: KubernetesSection, pod: PodShape, wanted: PodSection, more: list[dict[str, str]]
) -> dict[str, Any]:
    size = {"cpu": str(pod.cpus), "memory": as_size(pod.memory), "ephemeral-storage": wanted.scratch}
    return {
        "name": name,
        "image": settings.image,
        "env": _environment(settings) + more + _secrets(settings),
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": _confined(),
        "volumeMounts": [
            {"name": "storage", "mountPath": settings.storage.mount},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "scratch", "mountPath": SCRATCH},
        ],
    }


def _volumes(pod: PodSection, settings: KubernetesSection) -> list[dict[str, Any]]:
    memory = {"medium": "Memory", "sizeLimit": pod.shared_memory}
    return [
        {"name": "storage", "persistentVolumeClaim": {"claimName": settings.storage.claim}},
        {"name": "shared-memory", "emptyDir": memory},
        {"name": "scratch", "emptyDir": {"sizeLimit": pod.scratch}},
    ]


def _environment(settings: KubernetesSection) -> list[dict[str, str]]:
    """What every Ray pod needs: caches of the node on its disk, downloads where all nodes see them."""
    values = {
        "HOME": SCRATCH,
        "HF_HOME": f"{settings.storage.mount}/huggingface",
        "DIST_SFT_CACHE": f"{SCRATCH}/dist-sft",
        "GLOO_SOCKET_IFNAME": settings.interface,
        "PYTHONUNBUFFERED": "1",
    }
    return _values(values | settings.environment)


def _network(settings: KubernetesSection, pod: PodShape) -> list[dict[str, str]]:
    nccl = {"NCCL_SOCKET_IFNAME": settings.interface} if pod.gpus else {}
    return _values(nccl | (settings.rdma.environment if settings.rdma else {}))


def _values(variables: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def _secrets(settings: KubernetesSection) -> list[dict[str, Any]]:
    """By reference: a value in the manifest, or in a runtime_env, could be read by everyone who may see the job."""
    return [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
        for variable, secret in settings.secrets.items()
    ]


def _places(name: str, settings: KubernetesSection, pod: PodShape, pods: int) -> dict[str, Any]:
    """One pod on each node, and the nodes near one another."""
    if pods == 1:
        return {}
    mine = {"matchLabels": labels(name, "worker")}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule" if pod.gpus else "ScheduleAnyway",
        "labelSelector": mine,
    }
    near = {"weight": 100, "podAffinityTerm": {"topologyKey": settings.near, "labelSelector": mine}}
    affinity = {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [near]}}
    return {"topologySpreadConstraints": [spread], **({"affinity": affinity} if settings.near else {})}
