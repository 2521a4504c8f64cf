"""Fixtures that several folders of tests share."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import hypothesis
import pytest

from tests.cpu_seconds import Meter
from tests.tiny import tied_model, tiny_model, tiny_rows, tiny_run
from tests.trained import refused, run, sft, trained_once
from tools import registry

__all__ = ["refused", "run", "sft", "tied_model", "tiny_model", "tiny_rows", "tiny_run", "trained_once"]


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data, which is not in the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder():
    """A function: name of a real tokenizer -> its folder. Without a registry the tests that need it are skipped."""

    def folder(name):
        try:
            return registry.tokenizer_folder(name)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no registry: {error}")

    return folder


hypothesis.settings.register_profile("any machine", deadline=None)  # seconds say more of what else runs than of ours
hypothesis.settings.load_profile("any machine")
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell, Ctrl-C would be ignored
os.environ["DIST_SFT_CACHE"] = tempfile.mkdtemp(prefix="dist_sft_cache_")  # never what an older code has stored


def pytest_configure(config):
    config.pluginmanager.register(Meter(config))


def pytest_unconfigure():
    shutil.rmtree(os.environ["DIST_SFT_CACHE"], ignore_errors=True)


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="also run the long random-kill and endurance tests")
    parser.addoption("--quick", action="store_true", help="leave out Ray, ranks and real tokenizers")
    parser.addoption(
        "--budget", action="store_true", help="fail where a folder costs more than tests/budget.json allows"
    )
    parser.addoption(
        "--write-golden", action="store_true", help="write golden files anew: read the diff before you commit"
    )


DEAREST = (
    "ray", "parity", "cluster", "resume", "rehearsal", "measured", "reshape", "export-adapters", "urls",
    "parity-adapters", "kills-while-saving", "tokenizers", "export", "noise", "adapter-starts", "golden", "delivery",
    "plain-peft", "export-memory", "stops", "templates",
)  # fmt: skip
"""Groups of tests, the most expensive first: a long one that started last would leave the other worker idle."""


def place(item):
    """Where the group of a test stands in DEAREST; behind it without one."""
    group = item.get_closest_marker("xdist_group")
    return DEAREST.index(group.args[0]) if group and group.args[0] in DEAREST else len(DEAREST)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    for item in items:
        if "tokenizer_folder" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("tokenizers"))  # of which some take 10 s to load
    if config.getoption(
        "--quick"
    ):  # what is dear is grouped: one worker makes a Ray, ranks, a run, a tokenizer for all
        grouped = {item for item in items if item.get_closest_marker("xdist_group") or item.get_closest_marker("soak")}
        config.hook.pytest_deselected(items=list(grouped))
        items[:] = [item for item in items if item not in grouped]
    items.sort(key=place)
    if config.getoption("--soak"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="long; run with --soak"))
