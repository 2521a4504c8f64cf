"""`dist-sft submit` and `dist-sft job` against a real Ray head that asks for a token."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import filelock
import psutil
import pytest
import yaml

from tests.ranks import losses, records, train_on_ranks
from tests.ray_head import BIN, TOKEN, Line, ray_head

pytestmark = pytest.mark.xdist_group("ray")
SECRET = "open-sesame-8471"
STEPS = 16


@pytest.fixture(scope="module")
def head():
    with ray_head(SFT_TEST_SECRET=SECRET, RAY_TRAIN_ENABLE_STATE_TRACKING="1") as head:
        yield head


@pytest.fixture
def here(tiny_run, tiny_rows, tmp_path):
    """A folder as a person has it: a run file, rows and a DeepSpeed JSON beside it; the model is on shared storage."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copy(tiny_rows, folder / "rows.jsonl")
    (folder / "zero.json").write_text('{"zero_optimization": {"stage": 3}}')
    (folder / "passwords.txt").write_text(SECRET)
    settings = tiny_run | {
        "run": {"name": tmp_path.name, "dir": str(tmp_path / "run"), "seed": 2},
        "model": tiny_run["model"] | {"neftune": {"alpha": 5}},
        "data": {"sources": [{"path": "rows.jsonl"}], "context_length": 256},
        "train": tiny_run["train"] | {"steps": STEPS, "learning_rate": 0.005},
        "checkpoint": {"every": 3},
        "cluster": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 0.5},
        "service": {"encoders": 0},
        "deepspeed": "zero.json",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder


class Command:
    """A `dist-sft ARGUMENTS` that runs, with the head's address and token unless the arguments say otherwise."""

    def __init__(self, head, *arguments, cwd=None, program=(BIN / "dist-sft",), **variables):
        address = () if "--address" in arguments else ("--address", head.address)
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  # as long as the command
        self.process = subprocess.Popen(
            [*program, *arguments, *address], env=head.client | variables, cwd=cwd,
            stdout=self.out, stderr=self.err, start_new_session=True,
        )  # fmt: skip

    def wait_until_it_shows(self, text, timeout=60):
        deadline = time.monotonic() + timeout
        while text not in self._read(self.out):
            assert time.monotonic() < deadline and self.process.poll() is None, self.end()
            time.sleep(0.05)

    def interrupt(self):
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, timeout=240):
        """(exit code, standard output, standard error)"""
        try:
            code = self.process.wait(timeout)
        finally:
            self.process.kill()
        return code, self._read(self.out), self._read(self.err)

    def _read(self, file):
        return os.pread(file.fileno(), 1 << 24, 0).decode()


def sft(head, *arguments, **options):
    """`dist-sft ARGUMENTS`, run to its end."""
    return Command(head, *arguments, **options).end()


def test_a_run_that_died_is_reported_and_goes_on_when_it_is_submitted_again(head, here, tmp_path):
    """With the losses of a run that nobody killed, trained without Ray."""
    command = ("submit", "run.yaml", "--secret", "SFT_TEST_SECRET", "--address", head.address)
    first = Command(head, *command, cwd=here, SFT_TEST_SECRET=SECRET)
    job_id = f"{tmp_path.name}-1"
    _wait_for_step(tmp_path / "run", 1, first)
    driver = _driver(job_id)
    _wait_for_step(tmp_path / "run", 8, first)
    driver.kill()
    code, out, err = first.end()
    assert code == 128 + signal.SIGKILL, err
    assert err.endswith(f"job {job_id}: FAILED, Job entrypoint command failed with exit code {code}\n")

    code, out, err = sft(head, *command, cwd=here, SFT_TEST_SECRET=SECRET)
    assert code == 0, out + err
    assert err.endswith(f"job {tmp_path.name}-2: SUCCEEDED, Job finished successfully.\n")
    whole = yaml.safe_load((here / "run.yaml").read_text())
    whole["run"]["dir"], whole["deepspeed"] = str(tmp_path / "whole"), {"zero_optimization": {"stage": 3}}
    whole["data"]["sources"] = [{"path": str(here / "rows.jsonl")}]
    train_on_ranks([whole], whole["cluster"]["workers"])
    assert list(losses(tmp_path / "run")) == list(range(1, STEPS + 1))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
    begun, again = [record["step"] for record in records(tmp_path / "run", "note") if record["text"] == "start"]
    assert begun == 0 and again in (6, 9, 12)
    assert f"finished: {STEPS} steps, resumed after step {again}" in out

    known = json.dumps([head.job(f"{tmp_path.name}-{i}") for i in (1, 2)])
    assert SECRET not in known + out and TOKEN not in known + out
    assert "dist-sft train run.yaml --secret=SFT_TEST_SECRET" in known
    shown = json.dumps(head.ask("/api/train/v2/runs/v1"))
    assert "train_loop_config" in shown and "samples_per_step" not in shown, "a run's settings may hold a secret"
    (unpacked,) = head.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert sorted(path.name for path in unpacked.iterdir()) == ["rows.jsonl", "run.yaml", "zero.json"]


def test_an_error_in_the_job_ends_the_submission_too_and_is_shown(head, here):
    code, out, err = sft(head, "submit", "run.yaml", "model.path=/not/on/the/nodes", "--json", cwd=here)
    assert code == 1
    assert "error: /not/on/the/nodes: " in err and "\n  fix: " in err
    result = json.loads(out)
    assert (result["status"], result["exit_code"]) == ("FAILED", 1) and "/not/on/the/nodes" in result["message"]


def test_a_job_whose_nodes_lack_a_secret_ends_before_it_trains(head, here, tmp_path):
    """And --no-wait returns at once, with what to type next."""
    submitted = Command(head, "submit", "run.yaml", "--secret=NOT_THERE", "--no-wait", cwd=here, NOT_THERE=SECRET)
    code, out, err = submitted.end()
    assert (code, out) == (0, f"{tmp_path.name}-1\n")
    assert f"  dist-sft job logs --follow {tmp_path.name}-1 --address {head.address}\n" in err
    code, out, err = sft(head, "job", "logs", "--follow", f"{tmp_path.name}-1")
    assert code == 1
    assert re.search(r"error: node \S+: NOT_THERE: nodes lack variables that the run needs\n  fix: set NOT_THERE", out)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_running_is_not_started_twice(head, here, tmp_path):
    head.start(f"{tmp_path.name}-7", "sleep 100")
    code, out, err = sft(head, "submit", "run.yaml", cwd=here)
    assert (code, out) == (1, "")
    assert re.search(
        rf"error: .*: run '{tmp_path.name}' is (pending|running) on this cluster as job {tmp_path.name}-7", err
    )
    assert sft(head, "job", "stop", f"{tmp_path.name}-7", "--json")[0] == 0
    assert head.job(f"{tmp_path.name}-7")["status"] == "STOPPED"


def test_a_job_waits_a_while_for_the_lock_that_a_lost_machine_may_still_hold(head, here, tmp_path):
    (tmp_path / "run").mkdir()
    with filelock.FileLock(tmp_path / "run" / ".lock"):
        job = Command(head, "submit", "run.yaml", "cluster.cpus_per_worker=64", cwd=here)
        job.wait_until_it_shows(f"{tmp_path / 'run'} is locked; waiting for 120 s")
    code, out, err = job.end()
    assert code == 1 and "2 workers with 64 CPUs each" in out, "it went on, and asked the cluster: " + out + err


def test_ctrl_c_leaves_the_job_and_a_stopped_job_is_no_success(head):
    head.start("long", "echo begun; sleep 100")
    watching = Command(head, "job", "logs", "long", "--follow")
    watching.wait_until_it_shows("\nbegun")
    watching.interrupt()
    code, _, err = watching.end()
    assert code == 130
    assert err == (
        "no longer following; job long goes on\n"
        + "".join(
            f"  dist-sft job {verb} long --address {head.address}\n" for verb in ("logs --follow", "status", "stop")
        )
        + "interrupted\n"
    )
    assert head.job("long")["status"] == "RUNNING"

    watching = Command(head, "job", "logs", "long", "--follow", "--json")
    code, out, _ = sft(head, "job", "stop", "long")
    assert (code, out) == (0, "long  STOPPED\n")
    code, out, _ = watching.end()
    assert code == 1 and json.loads(out)["status"] == "STOPPED"


@pytest.mark.parametrize("lose", [Line.cut, Line.hang_up])
def test_a_connection_that_is_lost_and_comes_back_loses_and_repeats_nothing(head, lose):
    count, job_id = 150, f"chatty-{lose.__name__}"
    head.start(job_id, f"for i in $(seq {count}); do echo line $i äöü; sleep 0.05; done; exit 5")
    line = Line(head.address)
    watching = Command(head, "job", "logs", job_id, "--follow", "--address", line.address)
    watching.wait_until_it_shows("line 40")
    lose(line)
    time.sleep(2)
    line.mend()
    code, out, err = watching.end()
    said = [text for text in out.splitlines() if text.startswith("line ")]
    assert said == [f"line {i} äöü" for i in range(1, count + 1)]
    assert code == 5
    assert re.match(
        r"the connection is lost \(.+\); trying again for 600 s\. The job goes on\.\nconnected again\n", err
    )


def test_a_connection_that_dies_without_a_word_is_made_again(head):
    impatient = "import dist_sft.remote.follow as f; f.QUIET = 1.5; from dist_sft.cli import main; main()"
    head.start("mute", "for i in $(seq 60); do echo line $i; sleep 0.1; done")
    line = Line(head.address)
    options = ("job", "logs", "mute", "--follow", "--address", line.address)
    watching = Command(head, *options, program=(sys.executable, "-c", impatient))
    watching.wait_until_it_shows("line 20")
    line.die()
    code, out, _ = watching.end(60)
    assert code == 0
    assert [text for text in out.splitlines() if text.startswith("line ")] == [f"line {i}" for i in range(1, 61)]


def test_a_cluster_that_stays_away_is_given_up_after_a_while(head):
    head.start("alone", "sleep 30")
    line = Line(head.address)
    watching = Command(head, "job", "logs", "alone", "--follow", "--patience", "2", "--address", line.address)
    watching.wait_until_it_shows("Running entrypoint")
    line.cut()
    code, _, err = watching.end()
    assert code == 1
    assert f"error: {line.address}: no answer for 2 s (nobody answers); the job may well go on\n" in err
    assert f"fix: follow it again: dist-sft job logs --follow alone --address {line.address}\n" in err


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RAY_AUTH_TOKEN": "wrong" + TOKEN}, "the cluster does not accept the token\n  fix: get the token"),
        ({"RAY_AUTH_MODE": "disabled"}, "the cluster asks for a token, and none was sent\n  fix: set RAY_AUTH_MODE"),
        (
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/none"},
            "no token: RAY_AUTH_TOKEN_PATH is set but file cannot",
        ),
    ],
)
def test_without_the_token_nothing_is_started(head, here, variables, message):
    before = len(head.ask("/api/jobs/"))
    code, out, err = sft(head, "submit", "run.yaml", cwd=here, **variables)
    assert (code, out) == (1, "") and message in err and "\nerror: " in err
    assert TOKEN not in err and len(head.ask("/api/jobs/")) == before


def test_an_address_where_no_dashboard_is_says_so(head, tmp_path):
    (port,) = [
        argument.partition("=")[2]
        for process in psutil.process_iter(["cmdline"])
        if str(head.folder) in " ".join(process.info["cmdline"] or ())
        for argument in process.info["cmdline"]
        if argument.startswith("--gcs_server_port=")
    ]
    web = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        web_port = re.search(r"port (\d+)", web.stdout.readline())[1]
        for address, message in (
            (f"127.0.0.1:{port}", "something answers here, but not the dashboard of a Ray cluster"),
            (f"http://127.0.0.1:{web_port}", "something answers here, but not the dashboard of a Ray cluster"),
            ("http://127.0.0.1:9", "nobody answers"),
            ("ray://127.0.0.1:10001", "'ray://127.0.0.1:10001' is no address of a dashboard"),
        ):
            code, out, err = sft(head, "job", "status", "any", "--address", address)
            assert (code, out) == (1, "") and f": {message}\n  fix: " in err, err
    finally:
        web.kill()


def test_a_job_that_the_cluster_does_not_know_is_an_error(head):
    """And --address is the cluster that is meant, whatever RAY_ADDRESS says, which Ray's client would prefer."""
    code, out, err = sft(head, "job", "status", "nosuch", RAY_ADDRESS="http://127.0.0.1:9")
    assert (code, out) == (1, "") and "the cluster knows no job 'nosuch'\n  fix: check the id" in err


def _driver(job_id):
    """The process `dist-sft train` of a job."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "train" in command and str(BIN / "dist-sft") in command and f'"{job_id}"' in str(process.environ()):
            return process
    raise AssertionError(f"no driver of {job_id}")


def _wait_for_step(folder, step, follower):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and follower.process.poll() is None:
        try:
            if max([0, *losses(folder)]) >= step:
                return
        except (OSError, ValueError):  # no file yet, or a line that is being written
            pass
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {follower.end(0)}")
