"""How many pods a run gets, how large they are, and where they go."""

import json

import pytest

from dist_sft.config.kubernetes import mebibytes
from dist_sft.core.errors import ConfigError
from tests.kubernetes.cases import CASES
from tests.kubernetes.parts import EVERYWHERE, container, templates


@pytest.mark.parametrize(
    ("workers", "gpus", "per_node", "pods", "each"),
    [
        (1, 1, 8, 1, 1), (8, 1, 8, 1, 8), (16, 1, 8, 2, 8), (12, 1, 8, 2, 6), (128, 1, 8, 16, 8), (4, 2, 8, 1, 8),
        (8, 2, 8, 2, 8), (8, 0.5, 8, 1, 4), (3, 1, 1, 3, 1),
    ],
)  # fmt: skip
def test_pods_are_equal_and_every_gpu_has_its_worker(job, workers, gpus, per_node, pods, each):
    made = job(
        f"cluster={{workers: {workers}, gpus_per_worker: {gpus}}}", f"kubernetes.gpus_per_node={per_node}",
        "kubernetes.worker.memory=8Gi",
    )  # fmt: skip
    group = made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [pods] * 3
    limits = container(made, "worker")["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == str(each)
    assert pods * each == workers * gpus
    assert group["rayStartParams"]["resources"] == f"'{{\"trainer\": {workers // pods}}}'"
    assert mebibytes(limits["memory"]) == (workers // pods * 8 + 8) * 1024


def test_a_cpu_run_has_a_pod_for_each_worker_and_asks_for_no_gpu(job):
    made = job("cluster={workers: 3, gpus_per_worker: 0}")
    assert made["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 3
    assert "gpu" not in json.dumps(container(made, "worker")["resources"])


def test_a_pod_has_the_cpus_that_its_workers_and_encoders_reserve(job):
    more = ("cluster={workers: 16, cpus_per_worker: 4}", "service={encoders: 3, cpus_per_encoder: 2}")
    limits = container(job(*more), "worker")["resources"]["limits"]
    assert limits["cpu"] == str(8 * 4 + 2 * 2 + 1)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["cluster.workers=13"], "13 workers cannot be dealt to equal pods of at most 8"),
        (["cluster={workers: 2, gpus_per_worker: 16}"], "a worker wants 16 GPUs, and a node has 8"),
        (["cluster={workers: 3, gpus_per_worker: 0.5}"], "3 workers of 0.5 GPUs share a pod: 1.5"),
        (["kubernetes.worker.cpus=8"], "a pod has 8 CPUs, and its 8 workers and 1 encoders reserve 9"),
        (["kubernetes.worker.shared_memory=1Gi"], "/dev/shm of a worker pod has room for"),
    ],
)
def test_pods_that_cannot_hold_their_workers_are_refused(render, overrides, what):
    with pytest.raises(ConfigError) as error:
        render(*overrides)
    assert error.value.what.startswith(what) and error.value.fix


@EVERYWHERE
def test_requests_are_limits_and_shared_memory_and_objects_fit_into_them(job, case):
    made = job(*CASES[case])
    cluster = made["spec"]["rayClusterSpec"]
    for kind, template in templates(made).items():
        resources = container(made, kind)["resources"]
        assert resources["requests"] == resources["limits"] and {"cpu", "memory", "ephemeral-storage"} <= set(
            resources["limits"]
        )
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert resources["limits"]["ephemeral-storage"] == volumes["scratch"]["emptyDir"]["sizeLimit"]
        if kind != "submitter":
            shared = volumes["shared-memory"]["emptyDir"]
            group = cluster["headGroupSpec"] if kind == "head" else cluster["workerGroupSpecs"][0]
            objects = int(group["rayStartParams"]["object-store-memory"])
            assert shared["medium"] == "Memory"
            assert objects / 2**20 < mebibytes(shared["sizeLimit"]) < mebibytes(resources["limits"]["memory"])


@EVERYWHERE
def test_no_training_worker_and_no_encoder_fits_on_the_head(job, case):
    params = job(*CASES[case])["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert (params["num-cpus"], params["num-gpus"]) == ("0", "0")


def test_worker_pods_go_to_nodes_of_their_own_that_are_near_one_another(job):
    spec = templates(job("cluster.workers=16"))["worker"]["spec"]
    (spread,) = spec["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"
    labels = templates(job("cluster.workers=16"))["worker"]["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    assert "affinity" in spec and "affinity" not in templates(job("kubernetes.near=null"))["worker"]["spec"]


def test_budgets_keep_the_driver_and_give_up_one_worker_at_a_time(render):
    *_, head, worker, made = render("cluster.workers=128")
    for budget, kind, least in ((head, "head", 1), (worker, "worker", 15)):
        assert budget["spec"]["minAvailable"] == least
        assert budget["spec"]["selector"]["matchLabels"].items() <= templates(made)[kind]["metadata"]["labels"].items()
    assert [made["kind"] for made in render("cluster.workers=1")] == ["ConfigMap", "PodDisruptionBudget", "RayJob"]
