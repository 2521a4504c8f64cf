"""Whole runs on two GPUs over NCCL, through the real command and a real Ray, against the same run on CPU.

Not yet run: no machine of ours has had two GPUs.
"""

import importlib.util

import pytest
import torch

from dist_sft.model.attention import flash
from tests.e2e.test_kill import STEPS, finish, kill_after, settings
from tests.ranks import records

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(2700),
]

PATIENCE = 900
"""Seconds for a run: kernels are compiled at their first use."""

EPS = {"eps": 1e-2}
"""Of Adam, so large that it does not magnify roundings."""

ZERO3 = {"stage": 3, "stage3_param_persistence_threshold": 0}  # so that small parameters are sharded, too
OFFLOADED = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
LORA = {"tuning": {"kind": "lora", "rank": 4, "init": "pissa"}}
EIGHT_BITS = {"optimizer": {"name": "adamw8bit", **EPS}}
BFLOAT16 = {"dtype": "bfloat16"}

EXACT = {
    "NCCL": {},
    "one GPU": {"cluster": {"workers": 1}},
    "ZeRO 2": {"zero": {"stage": 2}},
    "optimizer and parameters offloaded": {"zero": ZERO3 | OFFLOADED},
    "Ulysses": {"train": {"sequence_parallel": 2}},
    "each sample alone": {"train": {"packing": False}},
    "recomputed": {"model": {"gradient_checkpointing": True}},
    "compiled": {"model": {"compile": True}},
    "flex": {"model": {"attention": "flex"}},
}
"""Sections of the run file, all in float32; "zero" is of DeepSpeed."""
ROUNDED = {
    "bfloat16": {"model": BFLOAT16},
    "bfloat16, offloaded": {"model": BFLOAT16, "zero": ZERO3 | OFFLOADED},
    "bfloat16, Ulysses": {"model": BFLOAT16, "train": {"sequence_parallel": 2}},
    "varlen": {"model": BFLOAT16 | {"attention": "varlen"}},
    "flash": {"model": BFLOAT16 | {"attention": "flash"}},
    "8-bit moments": {"train": EIGHT_BITS},
    "quantised weights": {"model": BFLOAT16, "zero": ZERO3 | {"zero_quantized_weights": True}},
}
"""The same; gradients are quantised between nodes only, and so not here."""
KILLED = {
    "NCCL": {},
    "offloaded": EXACT["optimizer and parameters offloaded"],
    "adapters": {"model": LORA},
    "8-bit moments": ROUNDED["8-bit moments"],
}


def run(tiny_run, folder, more):
    """Settings with noise, ZeRO-3 on two GPUs unless they say otherwise. more: of sections, one level deep."""
    whole = settings(tiny_run, folder) | {"deepspeed": {"zero_optimization": more.get("zero", ZERO3)}}
    whole["train"] = whole["train"] | {"optimizer": EPS}
    whole["cluster"] = whole["cluster"] | {"gpus_per_worker": 1}
    for section in ("model", "train", "cluster"):
        whole[section] = whole[section] | more.get(section, {})
    return whole


def needs(name):
    """Skip what asks for a package that is not there, or does not load."""
    if name == "flash" and not flash.installed():
        pytest.skip("flash-attention is not installed, or does not load")
    if name == "8-bit moments" and not importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is not installed")


@pytest.fixture(scope="module")
def on_cpu(tiny_run, tmp_path_factory):
    """Losses of the run on two CPU ranks: of all weights, and of adapters."""
    folder, cpu = tmp_path_factory.mktemp("cpu"), {"cluster": {"gpus_per_worker": 0}}
    return [
        finish(run(tiny_run, folder / name, cpu | {"model": model}), PATIENCE)
        for name, model in (("full", {}), ("lora", LORA))
    ]


@pytest.mark.parametrize("name", EXACT)
def test_a_run_on_gpus_learns_what_it_learns_on_cpu(name, tiny_run, on_cpu, tmp_path):
    assert finish(run(tiny_run, tmp_path / "run", EXACT[name]), PATIENCE) == pytest.approx(on_cpu[0], abs=1e-3)


def test_adapters_learn_on_gpus_what_they_learn_on_cpu(tiny_run, on_cpu, tmp_path):
    assert finish(run(tiny_run, tmp_path / "run", {"model": LORA}), PATIENCE) == pytest.approx(on_cpu[1], abs=1e-3)


@pytest.mark.parametrize("name", ROUNDED)
def test_a_run_that_rounds_learns_about_what_one_in_float32_does(name, tiny_run, on_cpu, tmp_path):
    needs(name)
    assert finish(run(tiny_run, tmp_path / "run", ROUNDED[name]), PATIENCE) == pytest.approx(on_cpu[0], abs=0.05)


@pytest.mark.parametrize("name", KILLED)
def test_a_run_that_is_killed_on_gpus_goes_on_as_if_it_had_not_been(name, tiny_run, tmp_path):
    needs(name)
    whole = finish(run(tiny_run, tmp_path / "whole", KILLED[name]), PATIENCE)
    killed = run(tiny_run, tmp_path / "killed", KILLED[name])
    kill_after(killed, step=8)
    assert finish(killed, PATIENCE) == pytest.approx(whole, abs=1e-3) and len(whole) == STEPS
    first, again = (r["step"] for r in records(tmp_path / "killed", "note") if r["text"] == "start")
    assert first == 0 and again >= 3
