"""A rank that makes no step says what it was doing, and ends."""

import subprocess
import sys

from dist_sft.cluster.heartbeat import STUCK

PROGRAM = """
import sys, time
from pathlib import Path
from dist_sft.cluster import heartbeat

heartbeat.LEFT = 0.0

def never_comes_back():
    time.sleep(60)

def idle_before_the_first_step(seconds):
    time.sleep(seconds)

dog = heartbeat.Watchdog(1.0, Path(sys.argv[1]), rank=3)
idle_before_the_first_step(2)
for _ in range(6):
    dog.beat()
    time.sleep(0.5)
print("alive", flush=True)
never_comes_back()
"""


def test_a_rank_without_a_step_writes_its_stacks_and_ends(tmp_path):
    ended = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "stacks"], capture_output=True, timeout=50)
    assert ended.returncode == STUCK and ended.stdout == b"alive\n", ended.stderr
    (file,) = (tmp_path / "stacks").iterdir()
    said = file.read_text()
    assert file.name.startswith("rank00003-") and "rank 3 on" in said and "no step for 1 s" in said
    assert "in never_comes_back" in said
