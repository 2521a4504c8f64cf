"""What the pods may do, and what a manifest never holds."""

import json

import pytest

from dist_sft.core.errors import ConfigError
from dist_sft.kubernetes.text import as_documents, as_list
from tests.kubernetes.cases import CASES
from tests.kubernetes.parts import EVERYWHERE, templates, variables


@EVERYWHERE
def test_every_pod_obeys_the_restricted_policy_of_kubernetes(job, case):
    for kind, template in templates(job(*CASES[case])).items():
        pod, (only,) = template["spec"], template["spec"]["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0, kind
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"]["allowPrivilegeEscalation"] is False
        assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert only["securityContext"]["readOnlyRootFilesystem"] is True
        assert "privileged" not in only["securityContext"]
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume]


@EVERYWHERE
def test_ray_asks_for_a_token_and_no_dashboard_is_opened_to_the_world(job, case):
    cluster = job(*CASES[case])["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP" and cluster["headGroupSpec"]["enableIngress"] is False


def test_a_secret_is_a_reference_on_the_pods_that_need_it_and_stands_nowhere_else(render, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    objects = render("kubernetes.secrets={HF_TOKEN: {name: hub, key: token}}")
    assert "hf_0123456789" not in as_documents(objects) + json.dumps(as_list(objects))
    reference = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    assert variables(objects[-1], "worker")["HF_TOKEN"] == variables(objects[-1], "head")["HF_TOKEN"] == reference
    assert "HF_TOKEN" not in variables(objects[-1], "submitter")
    assert "HF_TOKEN" not in objects[0]["data"]["run.yaml"]
    assert "runtimeEnvYAML" not in objects[-1]["spec"]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("kubernetes.environment={WANDB_API_KEY: abc}", "kubernetes.environment.WANDB_API_KEY looks like a secret"),
        ("kubernetes.rdma.environment={MY_PASSWORD: abc}", "kubernetes.rdma.environment.MY_PASSWORD looks like"),
        ("kubernetes.environment={REDIS_PASSWORD: abc}", "kubernetes.environment.REDIS_PASSWORD is set by KubeRay"),
        ("kubernetes.environment={PROXY: 'http://me:abc@proxy'}", "kubernetes.environment.PROXY looks like a secret"),
        ("data.sources.0.path=s3://me:abc@bucket/rows.jsonl", "data.sources.0.path holds a secret"),
        ("deepspeed.comet={api_key: abc}", "deepspeed.comet.api_key holds a secret"),
        ("tracking.wandb={mode: online}", "tracking.wandb.mode is online, and the pods would have no WANDB_API_KEY"),
    ],
)
def test_a_secret_in_the_run_file_or_a_missing_one_is_refused(render, override, what):
    with pytest.raises(ConfigError) as error:
        render(override)
    assert error.value.what.startswith(what) and error.value.fix
