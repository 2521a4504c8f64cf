"""The lock of a build whose owner died costs nothing; a living build is waited for, and only one that is needed."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from torch.utils import cpp_extension

from dist_sft.run import extension_builds
from dist_sft.run.extension_builds import guard_builds
from tests.ranks import ROOT, losses, train_on_ranks

BUILD = """
import ctypes, sys
from torch.utils import cpp_extension
from dist_sft.run.extension_builds import guard_builds
guard_builds(lambda text: print(text, flush=True))
cpp_extension.load("seven", [sys.argv[1]], is_python_module=False)
print("built", ctypes.CDLL(sys.argv[1].replace("source.cpp", "seven.so")).seven(), flush=True)
"""
SOURCE = 'extern "C" int seven() { return 7; }'
COMPILER = """#!/bin/sh
case "$*" in *source.cpp*) echo begins >> compiled; timeout 20 sh -c 'until [ -e go ]; do sleep 0.1; done';; esac
c++ "$@" || exit
case "$*" in *source.cpp*) echo ends >> compiled;; esac
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the extension `seven` is built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    path = tmp_path / "extensions" / "seven"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def baton(folder):
    """A function: what its owner is told -> torch's lock of that build, guarded."""
    original = cpp_extension.FileBaton

    def make(say=lambda text: None):
        guard_builds(say)
        return cpp_extension.FileBaton(str(folder / "lock"), wait_seconds=0.05)

    yield make
    cpp_extension.FileBaton = original


@pytest.fixture
def raw(folder):
    """torch's own lock, as a process has it that knows nothing of ours."""
    return cpp_extension.FileBaton(str(folder / "lock"))


def in_background(baton):
    """A thread that acquires a lock and gives it back."""
    thread = threading.Thread(target=lambda: baton.try_acquire() and baton.release())
    thread.start()
    return thread


def contended(baton):
    """A lock that is held, one that waits for it, what that got, and the thread in which it waits."""
    ours, other, acquired = baton(), baton(), []
    assert ours.try_acquire()
    waiting = threading.Thread(target=lambda: acquired.append(other.try_acquire()))
    waiting.start()
    return ours, other, acquired, waiting


def test_a_free_lock_is_acquired_and_given_back(baton, folder):
    ours = baton()
    assert ours.try_acquire() and (folder / "lock").exists()
    ours.release()
    assert not (folder / "lock").exists()


def test_a_lock_that_nobody_holds_is_removed_at_once(baton, folder):
    (folder / "lock").touch()
    said = []
    ours = baton(said.append)
    assert ours.try_acquire() and said == []
    ours.release()


@pytest.mark.parametrize("linked", [False, True])
def test_a_build_of_another_program_is_waited_for_with_a_word(baton, folder, tmp_path, linked):
    (tmp_path / "link").symlink_to(folder.parent)
    there = (tmp_path / "link" / "seven" if linked else folder) / "lock"
    theirs, said = cpp_extension.FileBaton(str(there)), []
    assert theirs.try_acquire()
    waiting = in_background(baton(said.append))
    waiting.join(1)
    assert waiting.is_alive() and (folder / "lock").exists()
    theirs.release()
    waiting.join(10)
    assert not waiting.is_alive()
    assert said == [f"waiting for the build that holds {folder / 'lock'}; if none runs, remove it"]


def test_a_build_of_ours_is_waited_for_and_not_done_again(baton, folder):
    ours, _, acquired, waiting = contended(baton)
    waiting.join(1)
    assert waiting.is_alive() and (folder / "lock").exists()
    ours.release()
    waiting.join(10)
    assert acquired == [False]
    later = baton()
    assert later.try_acquire(), "a later start looks for itself whether all is built"
    later.release()


def test_a_build_of_ours_that_was_killed_is_done_by_who_waited_for_it(baton, folder):
    ours, other, acquired, waiting = contended(baton)
    waiting.join(0.5)
    os.close(ours.fd)  # what is left of a killed process: the file
    os.close(ours.kernel)
    waiting.join(10)
    assert acquired == [True] and (folder / "lock").exists()
    other.release()


def test_where_other_nodes_see_the_folder_a_lock_may_be_theirs_until_nothing_was_written_for_long(
    baton, folder, monkeypatch
):
    monkeypatch.setattr(extension_builds, "LOCAL", set())
    (folder / "lock").touch()
    object_file = folder / "main.o"
    object_file.touch()
    waiting = in_background(baton())
    past = time.time() - extension_builds.FRESH - 1
    os.utime(folder / "lock", (past, past))
    waiting.join(1)
    assert waiting.is_alive() and (folder / "lock").exists(), "an object was written a moment ago"
    os.utime(object_file, (past, past))
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_lock_that_another_took_meanwhile_is_not_removed(folder, monkeypatch):
    """Between the two looks, its owner ends in good order and another build begins."""
    lock = folder / "lock"
    lock.touch()

    def changes_hands(seconds):
        (folder / "next").touch()
        (folder / "next").rename(lock)

    monkeypatch.setattr(extension_builds.time, "sleep", changes_hands)
    assert not extension_builds._is_stale(lock)


def start(folder):
    (folder / "source.cpp").write_text(SOURCE)
    (folder / "compiler").write_text(COMPILER)
    (folder / "compiler").chmod(0o755)
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # for ninja
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, folder / "source.cpp"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "CXX": str(folder / "compiler")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_after_a_build_that_was_killed_the_next_two_build_it(folder):
    """A real build, with SIGKILL in the middle of it; its compiler lives on, and is waited for."""
    killed = start(folder)
    while not (folder / "compiled").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert (folder / "lock").exists()
    after = [start(folder)]
    try:
        assert after[0].stdout.readline().startswith("waiting for the build that holds")
        (folder / "go").touch()
        after.append(start(folder))
        for process in after:
            out, err = process.communicate(timeout=300)
            assert out.splitlines()[-1] == "built 7", err
        assert not (folder / "lock").exists()
        runs = (folder / "compiled").read_text().split()
        assert runs in (["begins", "ends"], ["begins", "ends"] * 2), "one compiler at a time"
    finally:
        for process in [killed, *after]:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def test_torch_alone_would_wait_for_ever_for_such_a_lock(raw, folder):
    (folder / "lock").touch()
    assert not raw.try_acquire(), "then torch waits until somebody removes it: the reason for this guard"


HOLD = """
import sys
held = [open(name, "w") for name in sys.argv[1:]]
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.xdist_group("parity")
@pytest.mark.timeout(300)
def test_builds_of_another_program_stop_no_run_that_builds_nothing(tiny_run, sft, tmp_path, monkeypatch):
    """`check --fast` and two ranks under ZeRO-3, while a living process builds all of DeepSpeed's extensions."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    extensions = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    locks = [extensions / name / "lock" for name in {*ALL_OPS, "deepspeed_shm_comm"}]
    for lock in locks:
        lock.parent.mkdir(parents=True)
    settings = tiny_run | {
        "run": {"name": "locked", "dir": str(tmp_path / "run")},
        "train": tiny_run["train"] | {"steps": 1},
        "cluster": {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 0.5},
        "deepspeed": {"zero_optimization": {"stage": 3}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, *map(str, locks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as builder:
        assert builder.stdout.readline() == b"held\n"
        ended = sft("check", tmp_path / "run.yaml", "--fast")
        assert ended.code == 0, ended
        train_on_ranks([settings], 2, 200)
        assert all(lock.exists() for lock in locks)
        builder.stdin.close()
    assert len(losses(tmp_path / "run")) == 1
