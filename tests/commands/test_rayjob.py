"""`dist-sft rayjob`, as a user and as a script see it."""

import json
import re

import pytest
import yaml

from tests.commands.test_plan import EIGHT_B

RUN = {
    "run": {"name": "gsm8k"},
    "model": {"path": "Qwen/Qwen3-8B"},
    "data": {"sources": ["data/gsm8k_train.jsonl"]},
    "train": {"epochs": 2},
    "kubernetes": {"image": "registry.example.com/dist-sft:0.1.0"},
}


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN, sort_keys=False))
    return path


def test_the_manifest_is_on_standard_output_as_documents_and_as_one_list(sft, run_file):
    ended = sft("rayjob", run_file, "cluster.workers=16")
    assert (ended.code, ended.error) == (0, "")
    documents = list(yaml.safe_load_all(ended.out))
    assert [made["kind"] for made in documents] == ["ConfigMap", "PodDisruptionBudget", "PodDisruptionBudget", "RayJob"]
    as_json = sft("rayjob", run_file, "cluster.workers=16", "--json")
    assert json.loads(as_json.out) == {"apiVersion": "v1", "kind": "List", "items": documents}


def test_what_cannot_become_a_job_is_an_error_and_nothing_is_printed(refused, run_file):
    assert refused("rayjob", run_file, "cluster.workers=13") == (
        "cluster.workers: 13 workers cannot be dealt to equal pods of at most 8: GPUs would be taken, and idle\n"
        "  fix: use 12 or 14 workers, or set kubernetes.gpus_per_node to a divisor"
    )
    assert refused("rayjob", run_file, "kubernetes.workers=2") == (
        "override 'kubernetes.workers=...': kubernetes.workers is not a setting\n  fix: did you mean 'worker'?"
    )
    assert refused("rayjob", run_file, "kubernetes.environment={HF_TOKEN: hf_1}") == (
        "override 'kubernetes.environment=...': kubernetes.environment.HF_TOKEN looks like a secret, and "
        "everyone who may read the manifest could read it\n"
        "  fix: kubectl create secret, and set kubernetes.secrets.HF_TOKEN: {name: SECRET, key: KEY}"
    )
    line = run_file.read_text().splitlines().index("kubernetes:") + 2
    run_file.write_text(run_file.read_text().replace("dist-sft:0.1.0", "dist-sft:latest"))
    assert refused("rayjob", run_file).startswith(
        f"{run_file}:{line}: kubernetes.image is 'registry.example.com/dist-sft:latest', not an image with a tag other"
    )


def test_a_run_file_without_the_section_says_what_to_add(refused, run_file):
    run_file.write_text(yaml.safe_dump({key: value for key, value in RUN.items() if key != "kubernetes"}))
    assert refused("rayjob", run_file) == (
        "kubernetes: the run file has no section for Kubernetes\n"
        "  fix: add kubernetes: {image: REGISTRY/dist-sft:VERSION}, or the override kubernetes.image=..."
    )


def test_a_cluster_that_stays_has_the_pods_of_the_job_and_no_run(sft, run_file):
    job = list(yaml.safe_load_all(sft("rayjob", run_file).out))[-1]
    *budgets, cluster = yaml.safe_load_all(sft("rayjob", run_file, "--cluster").out)
    assert [made["kind"] for made in budgets] == ["PodDisruptionBudget"] and cluster["kind"] == "RayCluster"
    assert cluster["spec"]["workerGroupSpecs"] == job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert "configMap" not in json.dumps(cluster)


def test_a_pod_with_less_memory_than_the_plan_wants_is_warned_of_with_the_setting(sft, run_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    EIGHT_B.configuration.save_pretrained("models/8b")
    zero = "deepspeed={zero_optimization: {stage: 3, offload_optimizer: {device: cpu}}}"
    command = ("rayjob", run_file, "model.path=models/8b", "cluster.workers=8", zero)
    little = sft(*command, "kubernetes.worker.memory=8Gi")
    assert little.code == 0 and list(yaml.safe_load_all(little.out))[-1]["kind"] == "RayJob"
    assert little.error.startswith("warning: a worker pod has 72.0 GiB of memory, and the plan wants ")
    said = re.search(r"set kubernetes.worker.memory, .* to (\d+)Gi or more", little.error)
    assert sft(*command, f"kubernetes.worker.memory={said[1]}Gi").error == ""
    assert sft(*command, f"kubernetes.worker.memory={int(said[1]) - 1}Gi").error.startswith("warning: ")
    assert sft(*command, "cluster.gpus_per_worker=0", "kubernetes.worker.memory=1Gi").error == ""
