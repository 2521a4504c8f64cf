"""The run file that travels to the pods, and the settings of its section kubernetes."""

import json

import pytest
import yaml

from dist_sft.config.load import load_config
from dist_sft.core.errors import ConfigError
from dist_sft.kubernetes.text import as_documents
from tests.kubernetes.cases import config_of
from tests.kubernetes.parts import container, templates


def test_the_pods_read_the_settings_that_were_made_and_learn_the_same(tmp_path, render):
    overrides = ["train.learning_rate=3e-5", "train.preset=lora", "model.tuning={kind: lora, rank: 8}"]
    overrides += ["run.name='1e5'", "kubernetes.name=numbers"]  # a text, and not to PyYAML's readers alone
    here = config_of(tmp_path, *overrides, "cluster.address=ray://laptop:10001")
    run_map, *_, made = render(*overrides, "cluster.address=ray://laptop:10001")
    text = run_map["data"]["run.yaml"]
    (tmp_path / "there.yaml").write_text(text)
    there = load_config(tmp_path / "there.yaml")
    assert there.model_dump(exclude={"cluster", "kubernetes"}) == here.model_dump(exclude={"cluster", "kubernetes"})
    assert there.cluster.workers == here.cluster.workers
    assert there.cluster.resource == "trainer", "of which a worker pod has one for each of its workers"
    assert there.cluster.address is None and there.kubernetes is None
    assert "cache" not in text, "a default of this machine's"
    volumes = {volume["name"]: volume for volume in templates(made)["head"]["spec"]["volumes"]}
    assert volumes["run"]["configMap"]["name"] == run_map["metadata"]["name"] and run_map["immutable"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(made, "head")["volumeMounts"]}
    assert made["spec"]["entrypoint"].endswith(f"dist-sft train {mounts['run']}/run.yaml")


def test_another_run_file_has_another_name_so_that_a_retry_reads_the_one_it_began_with(render):
    first, again, other = render(), render(), render("train.learning_rate=3e-5")
    assert first[0]["metadata"]["name"] == again[0]["metadata"]["name"] != other[0]["metadata"]["name"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.dir=/home/me/runs", "run.dir"), ("run.dir=../runs", "run.dir"), ("model.path=~/models/x", "model.path"),
        ("data.sources.0.path=/data/rows.jsonl", "data.sources[0].path"), ("eval.source=/data/x.jsonl", "eval.source"),
        ("eval.sources=[x.jsonl, /data/y.jsonl]", "eval.sources.1"),
        ("data.cache=/var/cache/tokens", "data.cache"), ("data.template=/home/me/chat.jinja", "data.template"),
    ],
)  # fmt: skip
def test_a_path_that_the_pods_do_not_see_is_refused(render, override, key):
    with pytest.raises(ConfigError) as error:
        render(override)
    assert error.value.where == key and "the claim 'dist-sft', mounted at /mnt/dist-sft" in error.value.what


@pytest.mark.parametrize(
    "override",
    ["run.dir=/mnt/dist-sft/runs", "model.path=Qwen/Qwen3-8B", "data.sources.0.path=hub:openai/gsm8k",
     "data.cache=null", "data.sources.0.path=s3://bucket/rows.jsonl", "data.cache=/tmp/tokens",
     "data.template=chat.jinja"],
)  # fmt: skip
def test_a_path_that_the_pods_see_is_taken(render, override):
    assert render(override)


def test_text_that_looks_like_something_else_arrives_as_text(render):
    values = {
        "A": "1e3",
        "B": "0o17",
        "C": "yes",
        "D": "~",
        "E": "12:30",
        "F": "0x1F",
        "G": "two\nlines\n",
        "H": "a: b # c",
    }
    objects = render(f"kubernetes.environment={json.dumps(values)}")
    text = as_documents(objects)
    assert list(yaml.safe_load_all(text)) == objects
    assert '"1e3"' in text and '"0o17"' in text  # numbers in YAML 1.2, which kubectl reads; not in PyYAML's 1.1


def test_a_job_for_kueue_has_its_queue_and_leaves_suspend_to_kueue(job):
    made = job("kubernetes.queue=research")
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert "suspend" not in made["spec"] and made["spec"]["shutdownAfterJobFinishes"]


def test_gang_schedulers_find_their_labels(job):
    volcano = job("kubernetes.gang={scheduler: volcano, queue: q}", "kubernetes.priority_class=high")
    assert {"volcano.sh/queue-name": "q", "ray.io/priority-class-name": "high"}.items() <= volcano["metadata"][
        "labels"
    ].items()
    yunikorn = job("kubernetes.gang={scheduler: yunikorn, queue: root.q}")["metadata"]["labels"]
    assert yunikorn["ray.io/gang-scheduling-enabled"] == "true"
    assert (yunikorn["yunikorn.apache.org/queue"], yunikorn["yunikorn.apache.org/app-id"]) == ("root.q", "gsm8k")


def test_two_queues_for_one_job_are_refused(render):
    with pytest.raises(ConfigError, match=r"kubernetes.queue is Kueue's"):
        render("kubernetes.queue=research", "kubernetes.gang={scheduler: volcano}")


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("kubernetes.image=registry/dist-sft:latest", "not an image with a tag other than latest"),
        ("kubernetes.image=registry:5000/dist-sft", "not an image with a tag other than latest"),
        ("kubernetes.name=My_Run", "not a name of at most 47"),
        ("kubernetes.worker.memory='64'", "not a size such as"),
        ("kubernetes.worker.memory=64GB", "not a size such as"),
        ("kubernetes.user=0", "not a number above 0"),
        ("kubernetes.retries=-1", "not a number of at least 0"),
        ("kubernetes.submission=K8SJobMode", "did you mean 'K8sJobMode'?"),
        ("kubernetes.storage.mount=/data/$(id)", "not an absolute path"),
        ("kubernetes.nodeSelector={a: b}", "kubernetes.nodeSelector is not a setting"),
        ("kubernetes.worker.tolerations=[{key: a, value: b}]", "has operator Exists and a value"),
        ("kubernetes.secrets={HF_TOKEN: hf_123}", "kubernetes.secrets.HF_TOKEN is not a section"),
        ("kubernetes=null", "the run file has no section for Kubernetes"),
        ("run.name=123", "no name of a RayJob can be made of run.name, '123'"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named_before_anything_is_made(render, override, what):
    override = 'run.name="123"' if override == "run.name=123" else override
    with pytest.raises(ConfigError) as error:
        render(override)
    assert what in str(error.value)


@pytest.mark.parametrize(
    "image", ["dist-sft:0.1.0", "registry:5000/a/b:v1", "ghcr.io/a/b@sha256:" + "0" * 64, "a/b:1.0@sha256:" + "f" * 64]
)
def test_an_image_with_a_tag_or_a_digest_is_taken(render, image):
    assert render(f"kubernetes.image={image}")
