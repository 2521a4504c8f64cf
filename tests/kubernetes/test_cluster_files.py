"""The files of cluster/ would be accepted, agree with one another, and with what the code renders."""

import re

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from dist_sft.config.kubernetes import mebibytes
from dist_sft.config.load import load_config
from dist_sft.kubernetes.manifest import render, render_cluster
from dist_sft.kubernetes.text import as_documents
from dist_sft.run.opened import open_run
from tests.kubernetes.cases import ROOT
from tests.kubernetes.parts import container
from tests.kubernetes.strict import complaints

CLUSTER = ROOT / "cluster"
OBJECTS = ("namespace", "storage", "networkpolicy", "kueue", "shell", "rayjob", "raycluster")
OVERRIDES = ("kubernetes.name=shared", "kubernetes.queue=null")


def objects(name):
    return list(yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text()))


def has_room(flavor, wanted, count):
    """Whether so many pods fit into a flavor's quota: Kueue takes the first that has room."""
    quota = {entry["name"]: amount(entry["nominalQuota"]) for entry in flavor["resources"]}
    return all(amount(size) * count <= quota[name] for name, size in wanted.items())


def amount(text):
    return int(text) if str(text).isdigit() else mebibytes(text)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_would_be_accepted(name):
    assert [complaint for made in objects(name) for complaint in complaints(made)] == []


@pytest.mark.parametrize(
    ("name", "command", "made"),
    [
        ("rayjob", "dist-sft rayjob cluster/run.yaml", lambda: render(open_run(CLUSTER / "run.yaml"))),
        (
            "raycluster",
            f"dist-sft rayjob --cluster cluster/run.yaml {' '.join(OVERRIDES)}",
            lambda: render_cluster(open_run(CLUSTER / "run.yaml", OVERRIDES)),
        ),
    ],
)
def test_the_rendered_examples_are_what_the_command_renders(name, command, made, request):
    text, file = f"# {command}\n{as_documents(made())}", CLUSTER / f"{name}.yaml"
    if request.config.getoption("--write-golden"):
        file.write_text(text)
    assert text == file.read_text()


def test_the_run_of_the_example_finds_namespace_claim_and_queue():
    settings = load_config(CLUSTER / "run.yaml").kubernetes
    namespace, claim = objects("namespace")[0], objects("storage")[0]
    *_, queue, local = objects("kueue")
    assert settings.namespace == namespace["metadata"]["name"] == claim["metadata"]["namespace"]
    assert settings.storage.claim == claim["metadata"]["name"] and claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert settings.queue == local["metadata"]["name"] and local["metadata"]["namespace"] == settings.namespace
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]


def test_the_shell_has_the_image_and_finds_the_hub_as_the_pods_of_the_example_do():
    shell, head = objects("shell")[0]["spec"]["containers"][0], container(objects("rayjob")[-1], "head")
    assert shell["image"] == head["image"]
    ours, theirs = ({variable["name"]: variable for variable in made["env"]} for made in (shell, head))
    assert ours["HF_HOME"] == theirs["HF_HOME"]
    secret = theirs["HF_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert ours["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == secret | {"optional": True}
    writable = tuple(mount["mountPath"] for mount in shell["volumeMounts"])
    assert ours["HOME"]["value"].startswith(writable) and ours["HF_HOME"]["value"].startswith(writable)


def test_ray_in_the_image_is_the_version_that_the_example_tells_the_operator():
    pins = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    assert f"ray=={load_config(CLUSTER / 'run.yaml').kubernetes.ray_version}" in pins


def test_the_queue_has_room_for_the_example_and_puts_only_workers_on_nodes_with_gpus():
    (group,), job = objects("kueue")[2]["spec"]["resourceGroups"], objects("rayjob")[-1]
    pods = {"submitter": 1, "head": 1, "worker": job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"]}
    for flavor in group["flavors"]:
        assert {entry["name"] for entry in flavor["resources"]} == set(group["coveredResources"])
    given = {}
    for kind, count in pods.items():
        wanted = container(job, kind)["resources"]["requests"]
        assert set(wanted) <= set(group["coveredResources"])
        given[kind] = next((flavor["name"] for flavor in group["flavors"] if has_room(flavor, wanted, count)), None)
    assert given == {"submitter": "cpu", "head": "cpu", "worker": "gpu"}


def test_the_network_policy_is_about_the_pods_of_a_run():
    policy, job = objects("networkpolicy")[0]["spec"], objects("rayjob")[-1]["spec"]
    cluster = job["rayClusterSpec"]
    templates = [job["submitterPodTemplate"], cluster["headGroupSpec"]["template"]]
    templates += [group["template"] for group in cluster["workerGroupSpecs"]]
    for template in templates:
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (operator,) = [rule for rule in policy["ingress"] if "namespaceSelector" in rule["from"][0]]
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert not [rule for rule in policy["ingress"] if not rule.get("from")], "a rule without from is for everyone"
    assert not [rule for rule in policy["egress"] if not rule.get("to")], "a rule without to is for everywhere"
    (world,) = [rule for rule in policy["egress"] if "ipBlock" in rule["to"][0]]
    assert world["ports"] == [{"port": 443, "protocol": "TCP"}]
    assert "169.254.0.0/16" in world["to"][0]["ipBlock"]["except"], "the cloud's credentials"


def test_ray_up_takes_its_file_and_the_head_trains_nothing_and_shows_its_dashboard_to_nobody():
    config = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text())
    validate_config(prepare_config(config))
    start = config["head_start_ray_commands"][-1]
    assert "--num-cpus=0 --num-gpus=0" in start and "--dashboard-host=127.0.0.1" in start
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert "RAY_AUTH_MODE=token" in command


def test_the_image_is_pinned_runs_as_no_root_and_copies_what_there_is():
    text = (CLUSTER / "Dockerfile").read_text()
    kept = (CLUSTER / "Dockerfile.dockerignore").read_text()
    users = re.findall(r"^USER (.*)$", text, re.M)
    assert users and users[-1] == "1000:1000"
    assert re.search(r"^ARG BASE=\S+:(?!latest)\S+$", text, re.M) and "--constraint constraints.txt" in text
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.M):
        for source in sources.split():
            assert (ROOT / source).exists() and f"!{source}\n" in kept
    assert not re.search(r"TOKEN|PASSWORD|_KEY|^ADD ", text, re.M)


def test_the_readme_names_only_files_that_are_there_and_every_file_of_the_folder():
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"\b(?:cluster|launchers|tools|docs)/[\w./-]*\w", text))
    assert [name for name in named if not (ROOT / name).exists()] == []
    others = {"cluster/README.md", "cluster/Dockerfile.dockerignore"}
    assert {f"cluster/{path.name}" for path in CLUSTER.iterdir()} - others <= named
