"""Our lists of DeepSpeed's keys are those that the installed DeepSpeed reads."""

import pytest

from dist_sft.config.deepspeed_keys import KNOWN
from dist_sft.config.run_config import RunConfig
from dist_sft.run.opened import open_run


class Asked(dict):
    """A config that notes every key it is asked for."""

    def __init__(self, values, asked):
        super().__init__(values)
        self.asked = asked

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)

    def keys(self):
        return self

    def __copy__(self):
        return self


@pytest.fixture(scope="module")
def deepspeed_runtime():
    from deepspeed.runtime import config

    return config


def test_the_top_level_keys_are_those_that_deepspeed_asks_for(deepspeed_runtime):
    asked = set()
    deepspeed_runtime.DeepSpeedConfig(Asked({"train_batch_size": 1}, asked))
    removed = set(deepspeed_runtime._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    only_with_a_process_group = {"sequence_parallel_size"}
    assert KNOWN[""] == (asked - removed) | only_with_a_process_group


def test_the_keys_of_sections_are_those_that_deepspeed_declares(deepspeed_runtime):
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    models = {
        "bf16": DeepSpeedBF16Config,
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    }
    for section, model in models.items():
        assert KNOWN[section] == {field.alias or name for name, field in model.model_fields.items()}, section


@pytest.mark.parametrize("name", ["zero3", "zero3_offload", "zero3_lora", "zero2", "cpu_debug"])
def test_deepspeed_accepts_what_we_merge(deepspeed_runtime, name):
    from pathlib import Path

    config = RunConfig.model_validate(
        {
            "model": {"path": "m"},
            "data": {"sources": [{"path": "x.jsonl"}]},
            "train": {"epochs": 1},
            "deepspeed": str(Path(__file__).parents[2] / "ds_configs" / f"{name}.json"),
        }
    )
    parsed = deepspeed_runtime.DeepSpeedConfig(open_run(config).deepspeed_for(1, "cpu"))
    assert parsed.zero_optimization_stage == (2 if name == "zero2" else 3)
    assert parsed.gradient_accumulation_steps == 1
    assert parsed.checkpoint_tag_validation_fail
