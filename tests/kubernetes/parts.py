"""Where things stand in a rendered RayJob."""

import pytest

from tests.kubernetes.cases import CASES

EVERYWHERE = pytest.mark.parametrize("case", CASES)


def templates(job):
    """The pods of a RayJob: head, worker, and submitter where there is one."""
    cluster, submitter = job["spec"]["rayClusterSpec"], job["spec"].get("submitterPodTemplate")
    found = {"head": cluster["headGroupSpec"]["template"], "worker": cluster["workerGroupSpecs"][0]["template"]}
    return found | ({"submitter": submitter} if submitter else {})


def container(job, kind):
    return templates(job)[kind]["spec"]["containers"][0]


def variables(job, kind):
    return {variable["name"]: variable for variable in container(job, kind)["env"]}
