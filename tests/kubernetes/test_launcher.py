"""launchers/k8s_rayjob with a kubectl that plays a cluster: what it applies, follows, and exits with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.cases import BASE, ROOT

KUBECTL = """\
#!/usr/bin/env bash
cd {folder}
echo "$*" >> calls
case "$*" in
    *jobId*) printf gsm8k-x7f2k ;;
    *"get rayjob"*)
        line=$(head -n 1 statuses)
        [ "$(wc -l < statuses)" -gt 1 ] && sed -i 1d statuses
        case $line in
            gone) echo 'Error from server (NotFound): rayjobs.ray.io "gsm8k" not found' >&2; exit 1 ;;
            unreachable) echo 'Unable to connect to the server: dial tcp: i/o timeout' >&2; exit 1 ;;
        esac
        printf '%s' "$line"
        ;;
    *apply*) cp "${{@: -1}}" applied ;;
    *logs*)
        [ -s cut ] && head -c "$(<cut)" log && : > cut && exit 1
        cat log
        ;;
esac
"""


@pytest.fixture
def launcher(tmp_path):
    """A function: what `get rayjob` answers, one look after the other; arguments -> the ended launcher."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE))
    (tmp_path / "log").write_text("step 1/2 loss 1.5\nstep 2/2 loss 1.2\n")
    (tmp_path / "kubectl").write_text(KUBECTL.format(folder=tmp_path))
    (tmp_path / "kubectl").chmod(0o755)
    environment = {**os.environ, "KUBECTL": str(tmp_path / "kubectl"), "PAUSE": "0.05", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def start(statuses, *arguments):
        (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        (tmp_path / "calls").write_text("")
        command = [ROOT / "launchers" / "k8s_rayjob", *arguments, tmp_path / "run.yaml"]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def run(statuses, *arguments):
        process = start(statuses, *arguments)
        out, error = process.communicate(timeout=60)
        return process.returncode, out, error, (tmp_path / "calls").read_text().splitlines()

    def submission(mode):
        settings = BASE["kubernetes"] | {"submission": mode}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE | {"kubernetes": settings}))

    run.start, run.folder, run.submission = start, tmp_path, submission
    return run


def test_a_run_that_succeeds_is_applied_followed_and_ends_with_0(launcher):
    code, out, error, calls = launcher(["", "Initializing||", "Running|RUNNING|", "Complete|SUCCEEDED|Job finished."])
    assert code == 0, error
    assert "step 2/2 loss 1.2" in out
    assert "gsm8k: Initializing" in error and "gsm8k: Complete SUCCEEDED Job finished." in error
    assert [made["kind"] for made in yaml.safe_load_all((launcher.folder / "applied").read_text())][-1] == "RayJob"
    assert all("--namespace dist-sft" in call for call in calls if "apply" not in call)


@pytest.mark.parametrize(
    "end", ["Complete|FAILED|exit code 1", "Complete|STOPPED|", "Failed|FAILED|BackoffLimitExceeded"]
)
def test_a_run_that_fails_ends_with_1_and_says_how_to_go_on(launcher, end):
    code, _, error, _ = launcher(["", "Running|RUNNING|", end])
    assert code == 1 and error.splitlines()[-2].startswith("error: ") and "--replace" in error.splitlines()[-1]


def test_a_manifest_that_the_operator_refuses_ends_with_1(launcher):
    code, _, error, _ = launcher(["", "ValidationFailed||the RayJob spec is invalid"])
    assert code == 1 and "ValidationFailed the RayJob spec is invalid" in error


def test_a_lost_connection_is_waited_for_and_a_deleted_job_is_not(launcher):
    code, *_ = launcher(["", "Running|RUNNING|", *["unreachable"] * 5, "Complete|SUCCEEDED|"])
    assert code == 0
    code, _, error, _ = launcher(["", "Running|RUNNING|", "gone"])
    assert code == 1 and "RayJob gsm8k is gone" in error


def test_a_retry_of_the_job_is_followed_to_its_end(launcher):
    statuses = ["", *["Running|RUNNING|"] * 9, "Retrying||", "Initializing||", *["Running|RUNNING|"] * 9]
    code, out, _, _ = launcher([*statuses, "Complete|SUCCEEDED|"])
    assert code == 0 and out.count("step 1/2") == 2


@pytest.mark.parametrize("mode", ["HTTPMode", "SidecarMode"])
def test_a_run_without_a_submitters_pod_is_followed_on_the_head(launcher, mode):
    launcher.submission(mode)
    code, out, error, calls = launcher(["", *["Running|RUNNING|"] * 9, "Complete|SUCCEEDED|"])
    assert code == 0, error
    assert out == "step 1/2 loss 1.5\nstep 2/2 loss 1.2\n"
    (asked,) = [call for call in calls if "logs" in call]
    assert asked == (
        "--namespace dist-sft exec service/gsm8k-head-svc --container ray-head -- "
        "ray job logs --follow --address http://127.0.0.1:8265 gsm8k-x7f2k"
    )


def test_a_log_that_is_cut_is_gone_on_with_and_no_line_is_shown_twice(launcher):
    (launcher.folder / "cut").write_text("18")  # after the first line
    launcher.submission("HTTPMode")
    code, out, error, calls = launcher(["", *["Running|RUNNING|"] * 20, "Complete|SUCCEEDED|"])
    assert code == 0, error
    assert out == "step 1/2 loss 1.5\nstep 2/2 loss 1.2\n"
    assert len([call for call in calls if "job logs" in call]) == 2


def test_an_ended_job_is_not_taken_for_a_new_one(launcher):
    code, _, error, calls = launcher(["Complete|SUCCEEDED|"])
    assert code == 1 and "has ended already" in error and not [call for call in calls if "apply" in call]
    code, _, _, calls = launcher(["Complete|FAILED|", "Running|RUNNING|", "Complete|SUCCEEDED|"], "--replace")
    assert code == 0 and [call for call in calls if "delete rayjob gsm8k" in call]


def test_a_run_file_that_cannot_become_a_job_touches_no_cluster(launcher):
    (launcher.folder / "run.yaml").write_text(yaml.safe_dump({**BASE, "kubernetes": {"image": "dist-sft:latest"}}))
    code, _, error, calls = launcher([""])
    assert code == 1 and "kubernetes.image is 'dist-sft:latest'" in error and calls == []


def test_ctrl_c_ends_the_following_and_leaves_the_job(launcher):
    process = launcher.start(["", "Running|RUNNING|"])
    calls = launcher.folder / "calls"
    deadline = time.monotonic() + 30
    while calls.read_text().count("get rayjob") < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "the job goes on" in error and "delete" not in calls.read_text()


def test_no_wait_returns_when_the_job_is_applied(launcher):
    code, _, _, calls = launcher([""], "--no-wait")
    assert code == 0 and len([call for call in calls if "get rayjob" in call]) == 1


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--nope"], 2), ([], 2)])
def test_the_launcher_explains_itself(arguments, code):
    ended = subprocess.run(
        [ROOT / "launchers" / "k8s_rayjob", *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == code
    assert "--replace" in ended.stdout if code == 0 else "see launchers/k8s_rayjob --help" in ended.stderr
