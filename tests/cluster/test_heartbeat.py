"""A rank that makes no step says what it was doing, and ends; nodes that are given notice are each saved from once."""

import json
import subprocess
import sys

import pytest

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
dog.rest()
time.sleep(2)
dog.beat()
print("alive", flush=True)
never_comes_back()
"""

NOTICE = """
import json, sys
from pathlib import Path
import ray
from ray.train import PreemptionInfo, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

def work(told):
    from ray.train.v2._internal.execution.context import get_train_context
    from dist_sft.cluster.heartbeat import Watchdog

    heartbeat, context = Watchdog(60.0, Path("/nowhere"), rank=0), get_train_context().preemption_context
    answers = []
    for done, nodes in enumerate(told):
        context.preemption_info = PreemptionInfo(None, dict.fromkeys(nodes, [0])) if nodes else None
        answers.append(heartbeat.step(done))
    return answers

ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
trainer = DataParallelTrainer(
    work, train_loop_config=json.loads(sys.argv[2]), scaling_config=ScalingConfig(num_workers=1),
    run_config=RunConfig(storage_path=sys.argv[1]),
)
print(trainer.fit().return_value)
"""


def test_a_rank_without_a_step_writes_its_stacks_and_ends(tmp_path):
    ended = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "stacks"], capture_output=True, timeout=200)
    assert ended.returncode == STUCK and ended.stdout.endswith(b"alive\n"), ended
    (file,) = (tmp_path / "stacks").iterdir()
    said = file.read_text()
    assert file.name.startswith("rank00003-") and "rank 3 on" in said and "no step for 1 s" in said
    assert "in never_comes_back" in said


@pytest.mark.xdist_group("ray")
def test_each_node_that_is_given_notice_is_answered_once(tmp_path):
    """In a worker of Ray Train's, told as its watcher tells it: the nodes that are being taken away just now."""
    told = ([], ["a"], ["a"], ["a", "b"], ["b"], ["b", "c"])
    ended = subprocess.run(
        [sys.executable, "-c", NOTICE, tmp_path, json.dumps(told)], capture_output=True, text=True, timeout=400
    )
    assert ended.stdout.splitlines()[-1:] == ["[False, True, False, True, False, True]"], ended.stderr
