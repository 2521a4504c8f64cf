"""Whole runs on two GPUs over NCCL, through the real command and a real Ray, against the same run on CPU.

Not yet run: no machine of ours has had one.
"""

import pytest
import torch

from tests.e2e.test_kill import STEPS, finish, kill_after, settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(1800),
]

COMMON = {
    "model": {},
    "train": {"optimizer": {"eps": 1e-2}},  # which does not make roundings large
    "cluster": {"gpus_per_worker": 1},
}
QUANTISED = {"zero_hpz_partition_size": 2, "zero_quantized_weights": True, "zero_quantized_gradients": True}
LORA = {"kind": "lora", "rank": 4, "init": "pissa"}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}

EXACT = {
    "NCCL": {},
    "one GPU": {"cluster": {"workers": 1}},
    "ZeRO 2": {"zero": {"stage": 2}},
    "optimizer and parameters offloaded": {"zero": OFFLOADED},
    "Ulysses": {"train": {"sequence_parallel": 2}},
    "each sample alone": {"train": {"packing": False}},
    "recomputed": {"model": {"gradient_checkpointing": True}},
    "compiled": {"model": {"compile": True}},
    "flex": {"model": {"attention": "flex"}},
}
"""In float32."""
ROUNDED = {
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "bfloat16, offloaded": {"model": {"dtype": "bfloat16"}, "zero": OFFLOADED},
    "bfloat16, Ulysses": {"model": {"dtype": "bfloat16"}, "train": {"sequence_parallel": 2}},
    "flash": {"model": {"dtype": "bfloat16", "attention": "flash"}},
    "8-bit moments": {"train": {"optimizer": {"name": "adamw8bit", "eps": 1e-2}}},
    "ZeRO++ quantisation": {"model": {"dtype": "bfloat16"}, "zero": QUANTISED},
}
PACKAGES = {"flash": "flash_attn", "8-bit moments": "bitsandbytes"}


def run(tiny_run, folder, more, **tuning):
    """Settings with noise, ZeRO-3 on two GPUs unless they say otherwise. more: of sections; "zero": of DeepSpeed."""
    whole = settings(tiny_run, folder) | {"deepspeed": {"zero_optimization": {"stage": 3} | more.get("zero", {})}}
    for section in ("model", "train", "cluster"):
        whole[section] = whole[section] | COMMON[section] | more.get(section, {})
    whole["model"] |= tuning
    return whole


@pytest.fixture(scope="module")
def on_cpu(tiny_run, tmp_path_factory):
    """A function: tuning -> losses of the run on two CPU ranks."""
    folder, found = tmp_path_factory.mktemp("cpu"), {}

    def learned(**tuning):
        name = str(tuning.get("tuning", {}).get("kind", "full"))
        if name not in found:
            found[name] = finish(run(tiny_run, folder / name, {"cluster": {"gpus_per_worker": 0}}, **tuning))
        return found[name]

    return learned


@pytest.mark.parametrize("name", EXACT)
def test_a_run_on_gpus_learns_what_it_learns_on_cpu(name, tiny_run, on_cpu, tmp_path):
    assert finish(run(tiny_run, tmp_path / "run", EXACT[name])) == pytest.approx(on_cpu(), abs=1e-3)


def test_so_does_one_that_trains_adapters(tiny_run, on_cpu, tmp_path):
    found = finish(run(tiny_run, tmp_path / "run", {}, tuning=LORA))
    assert found == pytest.approx(on_cpu(tuning=LORA), abs=1e-3)


@pytest.mark.parametrize("name", ROUNDED)
def test_what_rounds_learns_about_that(name, tiny_run, on_cpu, tmp_path):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    assert finish(run(tiny_run, tmp_path / "run", ROUNDED[name])) == pytest.approx(on_cpu(), abs=0.05)


def test_a_run_that_is_killed_on_gpus_goes_on_as_if_it_had_not_been(tiny_run, on_cpu, tmp_path):
    on_gpus = run(tiny_run, tmp_path / "killed", {})
    kill_after(on_gpus, step=8)
    assert finish(on_gpus) == pytest.approx(on_cpu(), abs=1e-3) and len(on_cpu()) == STEPS
