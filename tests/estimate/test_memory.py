"""Estimates of memory, against what DeepSpeed was seen to hold (bytes per parameter, world 1, AdamW) and its own."""

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from transformers import LlamaConfig

from dist_sft.config.run_config import RunConfig
from dist_sft.estimate.memory import estimate
from dist_sft.model.architecture import Architecture

LLAMA = Architecture.of(LlamaConfig(vocab_size=32000, hidden_size=512, num_hidden_layers=4, num_attention_heads=8))
HELD = {("float32", 1): 16, ("float32", 3): 20, ("bfloat16", 1): 18, ("bfloat16", 3): 18}
"""Bytes of all tensors after a step over parameters; grad_accum_dtype fp32. Without ZeRO gradients are freed: 12."""


def states(dtype, stage, ranks=1, trained=10**9, **zero):
    config = RunConfig.model_validate(
        {"model": {"path": "m", "dtype": dtype}, "data": {"sources": [{"path": "x"}]}, "train": {"steps": 1}}
    )
    deepspeed = {
        "zero_optimization": {"stage": stage, **zero},
        "train_batch_size": ranks,
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    return estimate(config, LLAMA, deepspeed, 10**9, trained)


@pytest.mark.parametrize(("dtype", "stage"), HELD)
def test_states_are_those_that_deepspeed_was_seen_to_hold(dtype, stage):
    memory = states(dtype, stage)
    held = memory.weights + memory.gradients + memory.optimizer
    extra = 4 if (dtype, stage) == ("float32", 1) else 0  # its gradients are freed between steps
    assert held / 1e9 == HELD[dtype, stage] + extra
    assert memory.gathered == 0


def test_states_are_those_of_deepspeeds_own_estimate(capsys):
    """It reckons with 18 bytes per parameter, sharded over all ranks, and the largest layer gathered in float32."""
    memory = states("bfloat16", 3, ranks=64)
    total = memory.weights + memory.gradients + memory.optimizer
    _, theirs, _ = estimate_zero3_model_states_mem_needs(10**9, 0, 8, 8, cpu_offload=False, cpu_offload_params=False)
    assert total == pytest.approx(theirs, rel=0.01)


def test_offloading_moves_bytes_to_the_host_and_adapters_have_few():
    full, offloaded = states("bfloat16", 3, 8), states("bfloat16", 3, 8, offload_optimizer={"device": "cpu"})
    assert offloaded.optimizer == 0 and offloaded.host == full.optimizer + full.gradients
    assert full.device - offloaded.device == full.optimizer + full.gradients
    adapters = states("bfloat16", 3, 8, trained=10**7)
    assert adapters.optimizer == full.optimizer / 100 and adapters.weights == full.weights


def test_recomputing_activations_saves_most_of_them():
    config = {"model": {"path": "m"}, "data": {"sources": [{"path": "x"}]}, "train": {"steps": 1}}
    kept, half, none = (
        estimate(
            RunConfig.model_validate(config | {"model": {"path": "m", "gradient_checkpointing": share}}),
            LlamaConfig(hidden_size=512, num_hidden_layers=32, num_attention_heads=8),
            {"train_batch_size": 1},
            1,
            1,
        ).activations
        for share in (False, 0.5, True)
    )
    assert kept > 1.6 * half and half > 4 * none
