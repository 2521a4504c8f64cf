"""Ranks are forked from one process, each as if it had been started by itself; how they end is told."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dist_sft.core.errors import ClusterError
from dist_sft.run.local_ranks import LocalRanks
from tests.ranks import ROOT

pytestmark = pytest.mark.xdist_group("local-ranks")


@pytest.fixture(scope="module")
def ranks():
    with LocalRanks(ROOT) as ranks:
        yield ranks


def end(ranks, how, world=2, timeout=60):
    return ranks.run("tests.run.ends", {"how": how}, world, timeout)


def test_a_rank_starts_with_everything_imported_and_in_the_environment_of_its_starter(ranks, monkeypatch):
    one = end(ranks, "well")
    monkeypatch.setenv("OF_THE_STARTER", "now")
    other = end(ranks, "well", world=3)
    assert one["imported"] and one["seconds"] < 1, "imports take five"
    assert "OF_THE_STARTER" not in one["environment"]
    wanted = {"OF_THE_STARTER": "now", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3", "DS_ACCELERATOR": "cpu"}
    assert wanted.items() <= other["environment"].items()
    assert one["drawn"] != other["drawn"] and one["folder"] == str(ROOT)


def test_no_thread_runs_where_ranks_are_forked(ranks):
    """It would hold locks for ever that a forked process waits for."""
    end(ranks, "well")
    tasks = Path(f"/proc/{ranks.server.pid}/task").iterdir()
    names = [(task / "comm").read_text().strip() for task in tasks]
    assert [name for name in names if name != "jemalloc_bg_thd"] == names[:1], "jemalloc is made to be forked"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", r"exit codes \[0, 1\]:[\s\S]*ValueError: a rank's own words"),
        ("exits", r"exit codes \[0, 3\]:[\s\S]*what a rank says"),
        ("is killed", r"exit codes \[0, -9\]"),
    ],
)
def test_how_a_rank_ends_is_told_and_the_next_world_runs(ranks, how, said):
    with pytest.raises(ClusterError, match=said):
        end(ranks, how)
    assert end(ranks, "well")


def test_ranks_that_hang_are_killed_at_the_time_limit(ranks, tmp_path):
    pids = ranks.start("tests.run.ends", {"how": "hangs"}, 2, tmp_path)
    with pytest.raises(ClusterError, match="2 ranks did not end within 1 s"):
        ranks.wait(1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert end(ranks, "well")


def test_ranks_do_not_outlive_their_starter(tmp_path):
    code = f"""
from pathlib import Path
from dist_sft.run.local_ranks import LocalRanks
ranks = LocalRanks()
print(ranks.server.pid, *ranks.start("tests.run.ends", {{"how": "hangs"}}, 2, Path({str(tmp_path)!r})), flush=True)
ranks.wait(100)
"""
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    processes = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
    assert len(processes) == 3 and all(process.is_running() for process in processes)
    starter.kill()
    starter.wait()
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert len(gone) == 3 and not alive


def test_ranks_do_not_outlive_the_process_that_they_are_forked_from(tmp_path):
    with LocalRanks(ROOT) as ranks:
        processes = [psutil.Process(pid) for pid in ranks.start("tests.run.ends", {"how": "hangs"}, 2, tmp_path)]
        ranks.server.kill()
        with pytest.raises(ClusterError, match="their server ended with exit code -9"):
            ranks.wait(30)
        gone, alive = psutil.wait_procs(processes, timeout=30)
        assert len(gone) == 2 and not alive


INTERRUPTED = """
import sys
from pathlib import Path
from dist_sft.run.local_ranks import LocalRanks

try:
    with LocalRanks() as ranks:
        ranks.start("tests.run.ends", {"how": "hangs"}, 2, Path(sys.argv[1]))
        print("up", flush=True)
        ranks.wait(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_is_an_interrupt_for_whoever_waits(tmp_path):
    """A terminal sends it to all processes: starter, server and ranks."""
    started = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    assert started.stdout.readline() == b"up\n"
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(started.pid, 0)


def test_a_server_that_is_gone_is_told_of():
    with LocalRanks(ROOT) as ranks:
        ranks.server.kill()
        with pytest.raises(ClusterError, match="their server ended with exit code -9"):
            end(ranks, "well")


def test_a_server_that_cannot_import_says_why(tmp_path, monkeypatch):
    (tmp_path / "deepspeed.py").write_text("raise ImportError('deepspeed is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with LocalRanks(ROOT) as ranks, pytest.raises(ClusterError, match=r"exit code 1:[\s\S]*deepspeed is broken"):
        end(ranks, "well")
