"""What a worker pod does before it is stopped: its hook, run as the kubelet would."""

import os
import subprocess
import time

import pytest

from tests.kubernetes.parts import container, templates


@pytest.fixture
def stopped(job, tmp_path):
    """A function: seconds, what runs in the pod -> seconds that the pre-stop hook took, and what it asked of `ray`."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be alone with its processes as in a pod")
    (tmp_path / "ray").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / "ray").chmod(0o755)
    (tmp_path / "asked").touch()

    def stop(seconds, processes):
        program, *arguments = container(job(f"kubernetes.drain={seconds}"), "worker")["lifecycle"]["preStop"]["exec"][
            "command"
        ]
        (tmp_path / "pod").write_text(f'{processes}\nsleep 0.5\nexec {program} "$@"\n')
        alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", tmp_path / "pod"]
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        began = time.monotonic()
        subprocess.run([*alone, *arguments], env=environment, timeout=60, check=True)
        return time.monotonic() - began, (tmp_path / "asked").read_text()

    return stop


def test_a_pod_that_trains_nothing_stops_at_once(stopped):
    took, asked = stopped(20, "(exec -a ray::EncoderActor sleep 60) &")
    assert took < 10 and asked == ""


def test_a_pod_that_trains_tells_ray_and_waits_for_its_workers(stopped):
    took, asked = stopped(20, "(exec -a ray::RayTrainWorker.poll_status sleep 3) &")
    assert 2.5 < took < 12
    assert asked.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    assert asked.endswith("--deadline-remaining-seconds 20\n")


def test_a_worker_that_does_not_end_is_waited_for_no_longer_than_the_drain(stopped):
    took, asked = stopped(2, "(exec -a ray::RayTrainWorker sleep 60) &")
    assert 2 < took < 12 and "--deadline-remaining-seconds 2" in asked


def test_kubernetes_waits_longer_than_the_drain(job):
    assert templates(job("kubernetes.drain=100"))["worker"]["spec"]["terminationGracePeriodSeconds"] == 135
