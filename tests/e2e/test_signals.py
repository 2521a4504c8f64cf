"""A run that a signal ends says so in one line, with the exit code of a shell, leaves nothing behind, and goes on."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from tests.command import DIST_SFT
from tests.ranks import ROOT, losses, train_on_ranks, wait_for_step

pytestmark = pytest.mark.xdist_group("ray")
STEPS, MANY = 60, 400
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}


@dataclass
class Runs:
    """A run file; the losses of a run that nobody ended; and the folder that their Ray has."""

    file: Path
    losses: dict
    ray: Path

    def command(self, folder, *arguments):
        """`dist-sft train`, as a terminal starts it; its output, and the mark of all that it starts."""
        mark, log = uuid.uuid4().hex, tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the command
        process = subprocess.Popen(
            [DIST_SFT, "train", self.file, f"run.dir={folder}", *arguments], cwd=ROOT, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "DIST_SFT_TEST": mark, "RAY_TMPDIR": str(self.ray)},
        )  # fmt: skip
        return process, log, mark


def text_of(log):
    log.seek(0)
    return log.read()


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    settings = tiny_run | {
        "run": {"name": "ended", "dir": str(folder / "whole")},
        "train": tiny_run["train"] | {"steps": STEPS, "learning_rate": 0.005},
        "checkpoint": {"every": 2},
        "cluster": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 0.5},
        "service": {"encoders": 0},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    train_on_ranks([settings], 1)
    with tempfile.TemporaryDirectory(dir="/tmp") as ray:  # a short path: names of sockets lie under it
        yield Runs(folder / "run.yaml", losses(folder / "whole"), Path(ray))


def alive(mark):
    """Processes that a command has started, itself included, by the mark in their environment."""
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.environ().get("DIST_SFT_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:90])
    return found


def nothing_is_left(mark, folder):
    deadline = time.monotonic() + 30  # processes whose parent has died end a moment later
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive(mark) == []
    whole = {path.parent for path in folder.rglob("manifest.json")}
    left = [path for path in folder.rglob("*") if path.name in ("ray", "stacks") or path.suffix in (".partial", ".tmp")]
    assert not [path for path in left if not path.parent.name.startswith("step_") or path.parent in whole], (
        "but in a checkpoint that was being written, which the next start takes away"
    )


def ends_as_documented(process, log, number):
    code, said = process.wait(180), text_of(log)
    assert "Traceback" not in said and "error" not in said.lower() and "core_worker" not in said, said
    if code == -number:  # before Python had begun to read the command
        assert said == ""
    else:
        assert code == 128 + number, said
        assert said.endswith(f"{WORDS[number]}\n") and said.count(WORDS[number]) == 1, said


@pytest.mark.parametrize("whom", ["all", pytest.param("the driver", marks=pytest.mark.soak)])
def test_a_run_that_is_ended_while_it_trains_goes_on_where_it_was(runs, tmp_path, whom):
    """SIGTERM to its whole process group, as schedulers do; SIGHUP, as a terminal does that closes."""
    more = "tracking.log_every=1"
    number = signal.SIGTERM if whom == "all" else signal.SIGHUP
    process, log, mark = runs.command(tmp_path / "run", more)
    wait_for_step(tmp_path / "run", 3, process)
    (os.killpg if whom == "all" else os.kill)(process.pid, number)
    ends_as_documented(process, log, number)
    nothing_is_left(mark, tmp_path / "run")
    said = text_of(log)
    assert f"the same command goes on from the newest checkpoint in {tmp_path / 'run'}, if there is one\n" in said
    assert len(re.findall("(?m)^ended by", said)) == 1
    if whom == "all":
        process, log, mark = runs.command(tmp_path / "run")
        assert process.wait(400) == 0, text_of(log)
        assert losses(tmp_path / "run") == runs.losses
        nothing_is_left(mark, tmp_path / "run")
        assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.parametrize("number", WORDS)
def test_a_command_that_has_hardly_begun_says_so_too(number):
    code = "import sys; sys.argv[:] = ['dist-sft', 'check', 'x']; import dist_sft.cli; print('there', flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "import time; time.sleep(99)"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "there\n"
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == f"{WORDS[number]}\n" and process.returncode == 128 + number


def test_a_signal_that_was_to_be_ignored_is_ignored():
    """As nohup has it."""
    code = (
        "import os, signal; from dist_sft.core.signals import stopping\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with stopping():\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('goes on')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "goes on\n"


def test_a_block_that_must_be_whole_is_and_a_second_signal_changes_nothing():
    code = """
import os, signal
from dist_sft.core.signals import Stopped, stopping, whole
done = []
with stopping() as stop:
    try:
        with whole():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as a library may
            os.kill(os.getpid(), signal.SIGHUP)
            done.append("block")
        done.append("never")
    except Stopped:
        done.append("stopped")
    os.kill(os.getpid(), signal.SIGTERM)
    done.append("end")
print(done, stop.first)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == f"['block', 'stopped', 'end'] {int(signal.SIGHUP)}\n"


def test_signals_wait_where_they_are_blocked_and_reach_processes_that_are_started_there():
    code = """
import os, signal, subprocess
from dist_sft.core.signals import Stopped, blocked, stopping, unblocked, whole
done = []
with stopping() as stop:
    try:
        with whole(), blocked():
            signal.signal(signal.SIGTERM, lambda *_: os.abort())  # as a library may
            os.kill(os.getpid(), signal.SIGTERM)
            child = subprocess.Popen(["sleep", "99"], preexec_fn=unblocked(None))
            child.send_signal(signal.SIGHUP)
            done.append(child.wait(20))
    except Stopped:
        done.append("stopped")
print(done, stop.first)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == f"[-1, 'stopped'] {int(signal.SIGTERM)}\n"


def test_a_head_that_is_gone_ends_the_run_with_one_error(runs, tmp_path):
    process, log, mark = runs.command(tmp_path / "run", "train.steps=100000")
    wait_for_step(tmp_path / "run", 3, process)
    (head,) = [one for one in psutil.Process(process.pid).children(recursive=True) if one.name() == "gcs_server"]
    head.kill()
    assert process.wait(120) == 1
    said = text_of(log)
    assert said.endswith(
        "error: local Ray: the head of the Ray cluster has not answered for 6 s, and the run cannot go on without it\n"
        "  fix: run the same command again: it goes on from the newest whole checkpoint\n"
    )
    assert said.count("error") == 1 and "Traceback" not in said
    nothing_is_left(mark, tmp_path / "run")


@pytest.mark.soak
@pytest.mark.timeout(5400)
def test_ended_at_twenty_random_moments(runs, tiny_run, tmp_path):
    """One run, ended and started again and again: half of the time while it begins, half of it while it trains."""
    settings = yaml.safe_load(runs.file.read_text())
    settings["train"]["steps"], settings["run"]["dir"] = MANY, str(tmp_path / "whole")
    train_on_ranks([settings], 1)
    dice, folder, more = random.Random(17), tmp_path / "run", f"train.steps={MANY}"
    for moment in range(20):
        number, whom = dice.choice(list(WORDS)), dice.choice([os.kill, os.killpg])
        process, log, mark = runs.command(folder, more)
        if moment % 2:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0.1, 90))
        else:
            wait_for_step(folder, max([0, *losses(folder)]) + dice.randint(1, 12), process)
        assert process.poll() is None, text_of(log)
        whom(process.pid, number)
        ends_as_documented(process, log, number)
        nothing_is_left(mark, folder)
        print(f"{moment}: {WORDS[number]} ({whom.__name__}) at step {max([0, *losses(folder)])}", flush=True)
    process, log, mark = runs.command(folder, more)
    assert process.wait(900) == 0, text_of(log)
    nothing_is_left(mark, folder)
    assert losses(folder) == losses(tmp_path / "whole")
