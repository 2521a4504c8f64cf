"""A mistake in a manifest is noticed: each of these is made on purpose, one at a time."""

import copy

import pytest
import yaml

from dist_sft.core.errors import ClusterError
from dist_sft.kubernetes.rules import refuse_broken
from tests.kubernetes.cases import GOLDEN
from tests.kubernetes.strict import complaints


def golden(name, kind="RayJob"):
    objects = yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text())
    return next(made for made in objects if made["kind"] == kind)


JOB, BUDGET, RUN_MAP = golden("one_node"), golden("one_node", "PodDisruptionBudget"), golden("one_node", "ConfigMap")

HEAD = "spec.rayClusterSpec.headGroupSpec"
GROUP = "spec.rayClusterSpec.workerGroupSpecs.0"
POD = f"{GROUP}.template.spec"
MISSING = object()


def changed(made, *changes):
    """A copy with other values at dotted paths; MISSING removes one."""
    made = copy.deepcopy(made)
    for path, value in changes:
        *parts, last = [int(part) if part.isdecimal() else part.replace("\\", ".") for part in path.split(".")]
        place = made
        for part in parts:
            place = place[part] if isinstance(place, list) else place.setdefault(part, {})
        if value is MISSING:
            del place[last]
        elif isinstance(place, list) and last == len(place):
            place.append(value)
        else:
            place[last] = value
    return made


def test_what_is_changed_here_is_accepted_as_it_is():
    assert [complaint for made in (JOB, BUDGET, RUN_MAP) for complaint in complaints(made)] == []


@pytest.mark.parametrize(
    ("made", "path", "value"),
    [
        (JOB, "specs", {}),
        (JOB, "metadata.label", {"a": "b"}),
        (JOB, "metadata.labels", {"a": 1}),
        (JOB, "spec.backofLimit", 3),
        (JOB, "spec.backoffLimit", "3"),
        (JOB, "spec.ttlSecondsAfterFinish", 60),
        (JOB, "spec.shutdownAfterJobFinishes", "true"),
        (JOB, "spec.submitterPodTemplate.spec.restartPolicies", "Never"),
        (JOB, "spec.submitterPodTemplate.metadata.label", {}),
        (JOB, "spec.rayClusterSpec.rayVersions", "2.60.0"),
        (JOB, "spec.rayClusterSpec.authOptions.mode", "tokens"),
        (JOB, "spec.rayClusterSpec.headGroupSpec", MISSING),
        (JOB, f"{HEAD}.template", MISSING),
        (JOB, f"{HEAD}.rayStartParams.num-cpus", 0),
        (JOB, f"{GROUP}.replica", 2),
        (JOB, f"{GROUP}.replicas", "two"),
        (JOB, f"{POD}.nodeSelectors", {}),
        (JOB, f"{POD}.securityContext.runAsNonRoots", True),
        (JOB, f"{POD}.securityContext.seccompProfile", {"kind": "RuntimeDefault"}),
        (JOB, f"{POD}.containers.0.imagePullPolic", "Always"),
        (JOB, f"{POD}.containers.0.name", MISSING),
        (JOB, f"{POD}.containers.0.env.0.valueForm", {}),
        (JOB, f"{POD}.containers.0.env.0.value", 1),
        (JOB, f"{POD}.containers.0.resources.limit", {}),
        (JOB, f"{POD}.containers.0.securityContext.capabilities.drops", ["ALL"]),
        (JOB, f"{POD}.containers.0.lifecycle.preStops", {}),
        (JOB, f"{POD}.volumes.0.persistentVolumeClaim", {"claim": "data"}),
        (JOB, f"{POD}.volumes.1.emptyDir.size", "1Gi"),
        (JOB, f"{POD}.tolerations", [{"key": "a", "effects": "NoSchedule"}]),
        (JOB, f"{POD}.topologySpreadConstraints", [{"maxSkew": 1, "topologyKey": "zone"}]),
        (BUDGET, "spec.minAvailables", 1),
        (BUDGET, "spec.selector.matchLabel", {}),
        (RUN_MAP, "datum", {}),
        (RUN_MAP, "immutable", "yes"),
        (RUN_MAP, "data", {"run.yaml": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_an_unknown_field_or_a_value_of_another_type_fails(made, path, value):
    assert complaints(changed(made, (path, value)))


SECRET = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
REDIS = ("spec.rayClusterSpec.gcsFaultToleranceOptions", {"redisAddress": "redis:6379"})
ENV = f"{HEAD}.template.spec.containers.0.env.0"
QUEUED = ("metadata.labels.kueue\\x-k8s\\io/queue-name", "research")
ALONE = ("spec.submitterPodTemplate", MISSING)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([("metadata.name", "a" * 48)], "the name has 48 characters, more than 47"),
        ([("metadata.name", "8b")], "the name '8b' is not of a-z"),
        ([("spec.submissionMode", "K8SJobMode")], "submissionMode is K8SJobMode"),
        ([("spec.rayClusterSpec", MISSING)], "neither rayClusterSpec nor clusterSelector"),
        ([("spec.shutdownAfterJobFinishes", False)], "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"),
        ([("spec.shutdownAfterJobFinishes", False), ("spec.ttlSecondsAfterFinished", 0), ("spec.suspend", True)],
         "suspend needs shutdownAfterJobFinishes"),
        ([("spec.ttlSecondsAfterFinished", -1)], "ttlSecondsAfterFinished is -1"),
        ([("spec.backoffLimit", -1)], "backoffLimit is -1"),
        ([("spec.activeDeadlineSeconds", 0)], "activeDeadlineSeconds is 0"),
        ([("spec.submissionMode", "InteractiveMode")], "backoffLimit excludes InteractiveMode"),
        ([("spec.clusterSelector.ray\\io/cluster", "other")], "backoffLimit excludes clusterSelector"),
        ([("spec.submissionMode", "SidecarMode")], "SidecarMode and submitterPodTemplate exclude each other"),
        ([("spec.submissionMode", "SidecarMode"), ALONE, (f"{HEAD}.template.spec.restartPolicy", "Always")],
         "SidecarMode needs restartPolicy Never of the head"),
        ([("spec.runtimeEnvYAML", "pip: [")], "runtimeEnvYAML is not a YAML mapping"),
        ([("spec.runtimeEnvYAML", "numpy")], "runtimeEnvYAML is not a YAML mapping"),
        ([("spec.rayClusterSpec.rayVersion", "2.51.1")], "needs rayVersion 2.52 or later, not 2.51.1"),
        ([("spec.rayClusterSpec.rayVersion", MISSING)], "needs rayVersion 2.52 or later"),
        ([(f"{GROUP}.minReplicas", MISSING)], "needs minReplicas and maxReplicas without autoscaling"),
        ([(f"{GROUP}.minReplicas", 2)], "minReplicas <= replicas"),
        ([(f"{GROUP}.replicas", 2)], "replicas <= maxReplicas"),
        ([(f"{POD}.containers", [])], "has no container"),
        ([(f"{GROUP}.resources", {"CPU": "1"}), (f"{GROUP}.rayStartParams.num-cpus", "1")],
         "has resources and the same in rayStartParams"),
        ([(f"{GROUP}.rayStartParams.labels", "a=b")], "has labels in rayStartParams"),
        ([("spec.rayClusterSpec.workerGroupSpecs.1", JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0])],
         "two worker groups have the same groupName"),
        ([(f"{POD}.volumes.0.name", "store")], "mounts storage, and there is no such volume"),
        ([(f"{POD}.volumes.0.name", "scratch")], "two volumes of the same name"),
        ([(f"{POD}.containers.0.env.0.name", "HF_HOME")], "sets HF_HOME twice"),
        ([(f"{POD}.containers.0.resources.limits.nvidia\\com/gpu", "4")],
         "requests nvidia.com/gpu without the same limit"),
        ([(ENV, {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"})], "RAY_REDIS_ADDRESS belongs into"),
        ([REDIS, (ENV, {"name": "REDIS_PASSWORD", **SECRET})], "REDIS_PASSWORD belongs into"),
        ([REDIS, (f"{HEAD}.rayStartParams.redis-password", "hunter2")], "redis-password belongs into"),
        ([(f"{HEAD}.rayStartParams.redis-username", "me")], "redis-username belongs into"),
        ([(ENV, {"name": "RAY_enable_autoscaler_v2", "value": "1"})], "needs enableInTreeAutoscaling"),
        ([QUEUED, ("spec.shutdownAfterJobFinishes", False), ("spec.ttlSecondsAfterFinished", 0)],
         "Kueue needs shutdownAfterJobFinishes"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_what_the_operator_would_refuse_is_refused_with_its_reason(changes, reason):
    broken = changed(JOB, *changes)
    assert complaints(broken)
    with pytest.raises(ClusterError) as error:
        refuse_broken([broken])
    assert reason in error.value.what and error.value.where.startswith("RayJob ")
