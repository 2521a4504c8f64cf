"""The hosts are what the tests on them take them for."""

import subprocess
import sys

import psutil
import pytest

from tests.multihost.hosts import Switch, why_not
from tests.ranks import ROOT

pytestmark = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))


def reaches(one, other):
    return one.run("bash", "-c", f"exec 3<>/dev/tcp/{other.name}/7000").returncode == 0


def test_hosts_are_apart_but_for_the_cable():
    with Switch() as switch, switch.host("one") as one, switch.host("two") as two:
        subprocess.Popen(two.command(sys.executable, "-m", "http.server", "7000"), stderr=subprocess.DEVNULL)
        assert two.run("hostname").stdout == "two\n"
        one.run("touch", "/tmp/ray/mine", "/dev/shm/mine")
        assert two.run("ls", "/tmp/ray", "/dev/shm").stdout == "/dev/shm:\n\n/tmp/ray:\n"
        assert "http.server" not in one.run("ps", "-ef").stdout and len(one.run("ps", "-e").stdout.splitlines()) < 6
        one.run("bash", "-c", "until exec 3<>/dev/tcp/two/7000; do sleep 0.1; done", timeout=20)
        assert reaches(one, two)
        two.unplug()
        assert one.run("timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/two/7000").returncode == 124
        two.plug()
        assert reaches(one, two)


def test_a_power_cut_ends_all_that_ran_and_the_host_comes_back_empty():
    with Switch() as switch, switch.host("one") as one:
        visitor = subprocess.Popen(one.command("sleep", "100"))
        one.run("bash", "-c", "setsid sleep 100 >/dev/null 2>&1 & touch /tmp/ray/mine")
        before = one.processes()
        assert len(one.processes("sleep 100")) == 2 and len(before) >= 4
        one.power_cut()
        assert visitor.wait(10) != 0 and not any(process.is_running() for process in before)
        one.start()
        assert one.run("ls", "/tmp/ray").stdout == "" and one.run("hostname").stdout == "one\n"


def test_nothing_is_left_when_whoever_made_the_hosts_is_killed():
    code = """
from tests.multihost.hosts import Switch
with Switch() as switch, switch.host("one") as one:
    one.run("bash", "-c", "setsid sleep 100 >/dev/null 2>&1 &")
    print(*[process.pid for process in one.processes()], flush=True)
    input()
"""
    maker = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    processes = [psutil.Process(int(pid)) for pid in maker.stdout.readline().split()]
    assert len(processes) == 3 and all(process.is_running() for process in processes)
    maker.kill()
    maker.wait()
    gone, alive = psutil.wait_procs(processes, timeout=10)
    assert len(gone) == 3 and not alive


def test_nothing_is_left_when_a_test_fails():
    hosts = []
    with pytest.raises(ZeroDivisionError), Switch() as switch, switch.host("one") as one:
        hosts += [switch.folder, *one.processes()]
        raise ZeroDivisionError
    folder, *processes = hosts
    assert processes and not any(process.is_running() for process in processes) and not folder.exists()
