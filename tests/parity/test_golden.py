"""What a few runs learn is, bit for bit, what they learned when golden.json was written.

A change of the code that leaves the learning alone leaves these losses alone. Processors and versions of torch add in
other orders: each has its own losses there, and those that have none agree with another's to rounding.

After a change that is meant: `pytest tests/parity/test_golden.py --write-golden` (with --soak for the demo).
"""

import json
import platform
import shutil
from pathlib import Path

import pytest
import torch

from dist_sft.checkpoint.layout import newest
from tests.command import process
from tests.ranks import losses, train_on_ranks

GOLDEN = Path(__file__).with_name("golden.json")
ROUNDING = 1e-3
"""Largest relative difference of a loss on another processor, after some updates."""


def processor():
    """What decides in which order this machine adds."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = [
        line.partition(":")[2].strip() for line in lines if line.startswith(("vendor_id", "cpu family", "model\t"))
    ]
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), platform.machine(), *model[:3]]


@pytest.fixture(scope="module")
def learned(tiny_run, tmp_path_factory):
    """Losses by step of each run: all weights, an adapter, and a run that goes on from its checkpoint."""
    folder = tmp_path_factory.mktemp("golden")

    def settings(name, **model):
        return tiny_run | {
            "run": {"name": name, "dir": str(folder / name), "seed": 5},
            "model": tiny_run["model"] | {"neftune": {"alpha": 5}} | model,
            "train": tiny_run["train"] | {"steps": 6, "learning_rate": 0.005},
            "checkpoint": {"every": 3},
            "cluster": {"workers": 2, "gpus_per_worker": 0},
            "deepspeed": {"zero_optimization": {"stage": 3}},
        }

    adapter = {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}
    train_on_ranks([settings("full"), settings("lora", tuning=adapter)], 2)
    shutil.copytree(folder / "full", folder / "resumed")
    shutil.rmtree(newest(folder / "resumed"))
    train_on_ranks([settings("full") | {"run": {"name": "full", "dir": str(folder / "resumed"), "seed": 5}}], 2)
    return {name: list(losses(folder / name).values()) for name in ("full", "lora", "resumed")}


def compare(request, found):
    """With what golden.json has, bit for bit where it knows this processor; or write it."""
    golden = json.loads(GOLDEN.read_text())
    here = next((kept for kept in golden if kept["processor"] == processor()), None)
    if request.config.getoption("--write-golden"):
        if here is None:
            golden.append(here := {"processor": processor(), "losses": {}})
        here["losses"] |= found
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    if here and found.keys() <= here["losses"].keys():
        assert found == {name: here["losses"][name] for name in found}
    else:
        kept = next(kept["losses"] for kept in golden if found.keys() <= kept["losses"].keys())
        assert found == {name: pytest.approx(kept[name], rel=ROUNDING) for name in found}


@pytest.mark.xdist_group("golden")
def test_losses_are_those_that_were_kept(learned, request):
    compare(request, learned)


@pytest.mark.xdist_group("golden")
def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(learned):
    assert learned["resumed"] == learned["full"]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_demo_learns_what_it_did(request, tmp_path):
    done = process("demo", tmp_path / "demo", timeout=900)
    assert done.returncode == 0, done.stderr
    compare(request, {"demo": list(losses(tmp_path / "demo" / "run").values())})
