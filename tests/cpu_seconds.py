"""CPU-seconds of each folder of tests, with all processes that its tests start, against the budget of the folder.

Wall-clock time says how busy the machine is; CPU-seconds say what a test costs. `tools/test` ends with the table;
`--budget`, which `.ci/run` passes, fails a run in which a folder costs more than `tests/budget.json` allows.

A session fixture is charged to the folder of the test that asks for it first.
"""

import json
import os
import threading
import uuid
from collections import defaultdict
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
BUDGET = TESTS / "budget.json"
MARK = "DIST_SFT_CPU_SECONDS"
TICKS = os.sysconf("SC_CLK_TCK")
INTERVAL = 0.5
"""Seconds between two looks at the processes: what an orphan used since the last look before its end is not counted."""


class ProcessTree:
    """This process and all that it started: children, their children, and those whose parent ended before them.

    A process is known by its parent, or by a variable of its environment that all inherit. Linux adds the time of an
    ended process to the parent that waits for it; what no parent took over is counted as it was last seen.
    """

    def __init__(self):
        os.environ[MARK] = uuid.uuid4().hex
        self._mark = f"{MARK}={os.environ[MARK]}".encode()
        self._seen = {}  # (pid, start time) -> (own and waited-for seconds, waited-for seconds, parent's key)
        self._strangers = set()
        self._lost = 0.0
        self._lock = threading.Lock()

    def seconds(self):
        """User and system time so far."""
        with self._lock:
            living = self._look()
            self._lost += self._not_taken_over(living)
            self._seen = living
            return self._lost + sum(total for total, _, _ in living.values())

    def _look(self):
        """The processes of the tree that live now."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and (stat := _stat(folder)):
                found[int(folder.name)] = stat
        keys = {pid: (pid, start) for pid, (_, start, _, _) in found.items()}
        members = {keys[os.getpid()]} | (self._seen.keys() & set(keys.values()))
        for pid in sorted(found, key=lambda pid: found[pid][1]):  # parents before their children
            if keys[pid] in members or keys[pid] in self._strangers:
                continue
            if keys.get(found[pid][0]) in members or self._marked(pid):
                members.add(keys[pid])
            else:
                self._strangers.add(keys[pid])
        self._strangers &= set(keys.values())
        return {key: (found[key[0]][2], found[key[0]][3], keys.get(found[key[0]][0])) for key in members}

    def _marked(self, pid):
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def _not_taken_over(self, living):
        """Seconds of processes that ended since the last look, as far as no ancestor's waited-for time grew by them."""
        ended = defaultdict(float)
        for key, (total, _, parent) in self._seen.items():
            if key not in living:
                while parent is not None and parent not in living:
                    parent = self._seen[parent][2] if parent in self._seen else None
                ended[parent] += total
        grown = {key: living[key][1] - (self._seen[key][1] if key in self._seen else 0.0) for key in living}
        return sum(max(0.0, total - grown.get(heir, 0.0)) for heir, total in ended.items())


def _stat(folder):
    """Parent, start time, own and waited-for seconds, waited-for seconds. None where the process has just ended."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    own, waited = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return int(fields[1]), int(fields[19]), (own + waited) / TICKS, waited / TICKS


class Meter:
    """Measures in the processes that run tests; adds up in the one that reports."""

    def __init__(self, config, budget=BUDGET):
        self.runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
        self.reports = not hasattr(config, "workerinput")
        self.budget = json.loads(budget.read_text()) if config.getoption("budget") else {}
        self.by_folder = defaultdict(float)
        self.by_test = {}
        if self.runs_tests:
            self.tree, self.ended = ProcessTree(), threading.Event()
            self.last = self.tree.seconds()
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while not self.ended.wait(INTERVAL):
            self.tree.seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "teardown":
            now = self.tree.seconds()
            report.user_properties.append(("cpu_seconds", now - self.last))
            self.last = now
        return report

    def pytest_runtest_logreport(self, report):
        if self.reports and report.when == "teardown":
            seconds = dict(report.user_properties)["cpu_seconds"]
            self.by_test[report.nodeid] = seconds
            self.by_folder[folder_of(report.nodeid)] += seconds

    @property
    def beyond(self):
        """The folders that cost more than their budget, and those that have none."""
        return {folder: cost for folder, cost in self.by_folder.items() if cost > self.budget.get(folder, 0)}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if self.runs_tests:
            self.ended.set()
        if self.reports and self.budget and self.beyond and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if not self.by_folder:
            return
        terminalreporter.section("CPU-seconds by folder")
        for folder, cost in sorted(self.by_folder.items(), key=lambda each: -each[1]):
            allowed = f"  of {self.budget.get(folder, 0):5}" if self.budget else ""
            beyond = "  BEYOND ITS BUDGET (tests/budget.json)" if self.budget and folder in self.beyond else ""
            terminalreporter.write_line(f"{cost:8.1f}{allowed}  {folder}{beyond}", red=bool(beyond))
        terminalreporter.write_line(f"{sum(self.by_folder.values()):8.1f}  in all")
        if most := terminalreporter.config.getoption("durations"):
            terminalreporter.section(f"CPU-seconds of the {most} most expensive tests")
            for test, cost in sorted(self.by_test.items(), key=lambda each: -each[1])[:most]:
                terminalreporter.write_line(f"{cost:8.1f}  {test}")


def folder_of(nodeid):
    """'tests/chat' of 'tests/chat/test_masks.py::test_x'; 'tests' of what lies in no folder below it."""
    return "/".join(nodeid.partition("::")[0].split("/")[:-1][:2])
