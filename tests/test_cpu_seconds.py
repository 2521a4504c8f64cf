"""What a folder of tests costs is measured with all processes that it starts, and held against its budget."""

import json
import os
import subprocess
import sys

import pytest

from tests.ranks import ROOT

CONFTEST = """
from pathlib import Path
from tests.cpu_seconds import Meter

def pytest_addoption(parser):
    parser.addoption("--budget", action="store_true")

def pytest_configure(config):
    config.pluginmanager.register(Meter(config, Path(__file__).with_name("budget.json")))
"""
BURN = """
import subprocess, sys, time
PROGRAM = "import time\\nwhile time.process_time() < {}: pass"

def test_in_this_process():
    begin = time.process_time()
    while time.process_time() - begin < 0.5:
        pass

def test_in_a_child():
    subprocess.run([sys.executable, "-c", PROGRAM.format(1.5)], check=True)

def test_in_an_orphan():
    subprocess.run(["sh", "-c", f"{sys.executable} -c '{PROGRAM.format(2.5)}' & "], check=True)
    time.sleep(6)
"""


@pytest.fixture
def project(tmp_path):
    """A function: budget -> how a run of pytest ended in which one folder burns 4.5 CPU-seconds and another none."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for folder, text in (("slow", BURN), ("fast", "def test_nothing():\n    pass\n")):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / f"test_{folder}.py").write_text(text)

    def run(budget, *options):
        (tmp_path / "budget.json").write_text(json.dumps(budget))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, *options]
        return subprocess.run(
            [*command, "tests"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def test_a_planted_slow_folder_fails_the_budget_and_is_named(project):
    done = project({"tests/slow": 1, "tests/fast": 1}, "--budget")
    assert done.returncode == 1, done.stdout
    (line,) = (line for line in done.stdout.splitlines() if "BEYOND ITS BUDGET" in line)
    cost, _, allowed, folder, *_ = line.split()
    assert 4.0 <= float(cost) <= 12 and (allowed, folder) == ("1", "tests/slow"), "a child and an orphan are counted"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_folder_within_its_budget_passes_also_with_several_workers(project, workers):
    done = project({"tests/slow": 60, "tests/fast": 60}, "--budget", "-n", workers)
    assert done.returncode == 0 and "BEYOND" not in done.stdout, done.stdout
    assert "tests/slow" in done.stdout


def test_a_folder_without_a_budget_fails(project):
    done = project({"tests/slow": 60}, "--budget")
    assert done.returncode == 1 and "tests/fast  BEYOND" in done.stdout, done.stdout


def test_every_folder_of_tests_has_a_budget():
    kept = json.loads((ROOT / "tests" / "budget.json").read_text())
    folders = {f"tests/{path.parent.name}" for path in (ROOT / "tests").glob("*/test_*.py")} | {"tests"}
    assert folders == kept.keys()
