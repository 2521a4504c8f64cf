"""The manifests of usual runs are those in golden/, and would be accepted.

After a change that is meant: `pytest tests/kubernetes/test_golden.py --write-golden`, and read the diff.
"""

import pytest
import yaml

from dist_sft.kubernetes.manifest import render, render_cluster
from dist_sft.run.opened import open_run
from tests.kubernetes.cases import CASES, GOLDEN, config_of, written
from tests.kubernetes.strict import complaints


@pytest.mark.parametrize("name", CASES)
def test_the_manifest_is_the_one_that_was_reviewed(name, tmp_path, request):
    file, text = GOLDEN / f"{name}.yaml", written(name, tmp_path)
    if request.config.getoption("--write-golden"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_manifest_breaks_no_schema_and_no_rule(name):
    objects = list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    assert objects[-1]["kind"] == "RayJob"
    assert [complaint for made in objects for complaint in complaints(made)] == []


def test_there_is_no_golden_file_without_a_case():
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(CASES)


@pytest.mark.parametrize(
    "override",
    [
        "submission=SidecarMode", "submission=HTTPMode", "ttl=0", "retries=0", "deadline=60", "near=null",
        "service_account=trainer", "priority_class=high", "image_pull_secrets=[a, b.c]", "token_secret=ray-token",
        "redis={address: 'rediss://redis.data:6379', username: ray, password: {name: redis, key: password}}",
        "worker={runtime_class: nvidia, node_selector: {gpu: a}, tolerations: [{key: a, operator: Equal, value: b}]}",
        "head={tolerations: [{effect: NoExecute}], node_selector: {pool: cpu}}", "rdma={networks: 'a@net1,b@net2'}",
        "gpu_resource=amd.com/gpu", "storage={claim: nfs.data, mount: /data}", "environment={NCCL_DEBUG: INFO}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("rendering", [render, render_cluster])
def test_every_setting_makes_objects_that_would_be_accepted(tmp_path, override, rendering):
    objects = rendering(open_run(config_of(tmp_path, "cluster.workers=16", f"kubernetes.{override}")))
    assert [complaint for made in objects for complaint in complaints(made)] == []
