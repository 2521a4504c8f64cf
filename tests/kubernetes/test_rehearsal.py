"""What the pods of a manifest find when they start: laid out for real, in a mount namespace, without Kubernetes."""

import os
import shlex
import subprocess

import pytest
import yaml

from tests.kubernetes.rehearsal import pods


@pytest.fixture
def inside(tmp_path):
    """A function: pod, shell command -> what it prints where the pod's folders are in place, with the pod's rights."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for mount namespaces")
    claim = tmp_path / "claim"
    claim.mkdir(exist_ok=True)

    def run(pod, command):
        folders = pod.set_up({"dist-sft": claim}, tmp_path / "node")
        script = f"{folders}\nexec {shlex.join((*pod.rights, 'bash', '-c', command))}"
        words = ["unshare", "--mount", "env", "-i", f"PATH={os.environ['PATH']}"]
        words += [f"{name}={value}" for name, value in pod.variables.items()]
        ended = subprocess.run([*words, "bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    run.claim = claim
    return run


def test_head_and_workers_see_one_claim_and_each_its_own_scratch(render, inside):
    head, *workers = pods(render("cluster={workers: 2, gpus_per_worker: 0}", "kubernetes.worker.shared_memory=2Gi"))
    assert [pod.component for pod in (head, *workers)] == ["head", "worker", "worker"]
    inside(workers[0], "cd /mnt/dist-sft && echo 7 > from_worker && echo x > /tmp/scrap")
    assert inside(head, "cat /mnt/dist-sft/from_worker; df -m --output=size /dev/shm | tail -n 1").split() == [
        "7",
        "2048",
    ]
    assert (inside.claim / "from_worker").exists() and not (inside.claim / "scrap").exists()


@pytest.mark.parametrize("number", [0, 1], ids=["head", "worker"])
def test_a_pod_is_no_root_and_can_gain_nothing(render, inside, number):
    pod = pods(render("kubernetes.user=1234"))[number]
    (inside.claim / "models").mkdir(mode=0o700)
    said = dict(line.split(":\t") for line in inside(pod, "cat /proc/self/status").splitlines())
    assert said["Uid"].split() == said["Gid"].split() == ["1234"] * 4 and said["Groups"].split() == ["1234"]
    assert {int(said[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert said["NoNewPrivs"] == "1"
    assert inside(pod, "echo x 2>&- > /etc/mine || echo refused") == "refused\n"
    assert inside(pod, "echo x > /mnt/dist-sft/models/mine && stat -c %g /mnt/dist-sft/models/mine") == "1234\n"


def test_the_head_reads_the_run_file_and_cannot_change_it(render, inside):
    objects = render("train.learning_rate=3e-5")
    head = pods(objects)[0]
    path = objects[-1]["spec"]["entrypoint"].split()[-1]
    assert yaml.safe_load(inside(head, f"cat {path}"))["train"]["learning_rate"] == 3e-5
    assert inside(head, f"echo x 2>&- > {path} || echo refused").strip() == "refused"


def test_the_entrypoint_is_one_command_in_the_folder_of_the_claim(render, inside, tmp_path):
    program = inside.claim / "dist-sft"
    program.write_text('#!/bin/sh\nprintf "%s|" "$PWD" "$@" "$HF_HOME" "$HOME"\n')
    program.chmod(0o755)
    entrypoint = render()[-1]["spec"]["entrypoint"]
    said = inside(pods(render())[0], f"PATH=/mnt/dist-sft:$PATH; {entrypoint}")
    assert said == "/mnt/dist-sft|train|/etc/dist-sft/run.yaml|/mnt/dist-sft/huggingface|/tmp|"
    assert not set("&|;<>()$`\\\"'*?[]#~!{}\n") & set(entrypoint)  # KubeRay puts it into a shell's command


def test_ray_is_started_as_the_manifest_says(render):
    head, worker = pods(render())
    assert {"--head", "--num-cpus=0", "--num-gpus=0", "--port=6379"} <= set(head.ray_start())
    words = set(worker.ray_start("head:6379"))
    assert {
        "--address=head:6379",
        "--num-cpus=10",
        "--num-gpus=8",
        '--resources={"trainer": 8}',
    } <= words and "--head" not in words
