"""The DeepSpeed JSON and the run file agree, or the run does not start."""

import json
from pathlib import Path

import pytest

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ConfigError
from dist_sft.run.opened import open_run

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))


def run_config(deepspeed, *, dtype="float32", optimizer="adamw", clip=0.7):
    return RunConfig.model_validate(
        {
            "model": {"path": "m", "dtype": dtype},
            "data": {"sources": [{"path": "x.jsonl"}]},
            "train": {"epochs": 1, "clip": clip, "optimizer": {"name": optimizer}},
            "deepspeed": deepspeed,
        }
    )


def refused(deepspeed, device="cuda", **settings):
    with pytest.raises(ConfigError) as caught:
        open_run(run_config(deepspeed, **settings)).deepspeed_for(2, device)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_shipped_file_suits_both_precisions_and_devices(path, dtype):
    for device in ("cpu", "cuda"):
        merged = open_run(run_config(str(path), dtype=dtype)).deepspeed_for(3, device)
        assert merged["bf16"]["enabled"] is (dtype == "bfloat16")
        assert "auto" not in json.dumps(merged)


def test_the_run_decides_batches_precision_clipping_and_saving():
    merged = open_run(run_config({"zero_optimization": {"stage": 3}}, dtype="bfloat16")).deepspeed_for(4, "cpu")
    assert merged["train_micro_batch_size_per_gpu"] == 1
    assert merged["gradient_accumulation_steps"] == 1
    assert merged["train_batch_size"] == 4
    assert merged["gradient_clipping"] == 0.7
    assert merged["bf16"] == {"enabled": True}
    assert merged["fp16"] == {"enabled": False}
    assert merged["checkpoint"] == {"tag_validation": "Fail", "load_universal": False}
    assert merged["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert "zero_allow_untested_optimizer" not in merged


def test_sgd_is_allowed_under_zero():
    assert open_run(run_config({}, optimizer="sgd")).deepspeed_for(1, "cpu")["zero_allow_untested_optimizer"] is True


def test_the_callers_config_is_left_as_it_was():
    given = {"zero_optimization": {"stage": 3}}
    open_run(run_config(given)).deepspeed_for(1, "cpu")
    assert given == {"zero_optimization": {"stage": 3}}


def test_bfloat16_without_sharding_is_refused():
    assert "with bfloat16 at ZeRO stage 0 DeepSpeed makes" in refused({}, dtype="bfloat16")


def test_a_contradiction_names_the_line_both_values_and_the_way_out(tmp_path):
    path = tmp_path / "my.json"
    path.write_text(
        '{\n\t"zero_optimization": {"stage": 3},\n\t"gradient_clipping": 5.0,\n\t"bf16": {"enabled": false}\n}'
    )
    assert refused(str(path), dtype="bfloat16") == (
        "2 problems in the DeepSpeed JSON\n"
        f"{path}:3: gradient_clipping is 5.0, but train.clip makes it 0.7\n"
        '  fix: remove it, or write "auto": the run file decides it\n'
        f"{path}:4: bf16.enabled is false, but model.dtype makes it true\n"
        '  fix: remove it, or write "auto": the run file decides it'
    )


def test_values_that_agree_and_autos_are_welcome():
    agreeing = {"gradient_clipping": 0.7, "train_batch_size": "auto", "fp16": {"enabled": "auto"}, "_why": "a comment"}
    merged = open_run(run_config(agreeing)).deepspeed_for(2, "cuda")
    assert merged["train_batch_size"] == 2
    assert "_why" not in merged


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4, but the run file (train.samples_pe"),  # noqa: E501
        ({"gradient_accumulation_steps": 8}, "gradient_accumulation_steps is 8, but the run file"),
        ({"train_batch_size": 64}, "train_batch_size is 64, but the run file"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op is 'sum', but the loss"),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation is false, but the loop"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true, but model.dtype makes it false"),
        ({"checkpoint": {"tag_validation": "Warn"}}, "checkpoint.tag_validation is 'Warn', but the checkpoints"),
        ({"optimizer": {"type": "Adam"}}, "optimizer stands in the DeepSpeed JSON: train.optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler stands in the DeepSpeed JSON: train.schedule"),
        ({"wandb": {"enabled": True}}, "wandb stands in the DeepSpeed JSON: tracking.wandb"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast is enabled: model.dtype"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size is 2, and the ranks are data-parallel"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size is 2"),
        ({"checkpoint": {"writer": {"type": "fast"}}}, "checkpoint.writer writes checkpoints that this cannot"),
        ({"zero_optimization": {"stage": 4}}, "the ZeRO stage is 4\n  fix: use 0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}},
         "weights are silently not saved makes it true"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param needs ZeRO stage 3"),
        ({"zero_optimization": {"stage": 3, "cpu_offload": True}}, "cpu_offload is an old name"),
        ({"compile": {"deepcompile": True}}, "compile.deepcompile compiles an engine as a whole"),
    ],
)  # fmt: skip
def test_what_contradicts_the_run_or_does_not_work_is_refused(given, message):
    assert message in refused(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
            "ZeRO++ quantisation does not work on CPU",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "NVMe offload does not work on CPU"),
    ],
)
def test_what_works_only_on_gpus_is_refused_on_cpu(given, message):
    assert message in refused(given, device="cpu")
    open_run(run_config(given)).deepspeed_for(2, "cuda")


def test_quantised_gradients_are_refused_unless_they_travel_as_the_kernel_reads_them():
    given = {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}}
    for wrong in (given, given | {"communication_data_type": "bfp16"}):
        message = refused(wrong)
        assert "reads gradients as fp16" in message and '"communication_data_type": "fp16"' in message
    open_run(run_config(given | {"communication_data_type": "fp16"})).deepspeed_for(2, "cuda")


@pytest.mark.parametrize("device", ["cpu", "nvme"])
def test_states_in_eight_bits_stay_on_their_gpu(device):
    given = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": device}}}
    with pytest.raises(ConfigError, match=f"keeps the optimizer's states on the {device}, and .* is adamw8bit"):
        open_run(eight_bits(given)).deepspeed_for(2, "cuda")
    for sound in (
        {"zero_optimization": {"stage": 2}},
        {"zero_optimization": {"offload_optimizer": {"device": "none"}}},
    ):
        open_run(eight_bits(sound)).deepspeed_for(2, "cuda")


def eight_bits(given):
    config = run_config(given)
    optimizer = config.train.optimizer.model_copy(update={"name": "adamw8bit"})
    return config.model_copy(update={"train": config.train.model_copy(update={"optimizer": optimizer})})


def test_an_unknown_key_that_deepspeed_would_ignore_is_named(tmp_path):
    path = tmp_path / "my.json"
    path.write_text('{\n  "zero_optimisation": {"stage": 3}\n}')
    assert refused(str(path)) == (
        f"{path}:2: zero_optimisation is not a setting of DeepSpeed\n  fix: did you mean 'zero_optimization'?"
    )
    assert "zero_optimization.stage3_param_threshold is not a setting of DeepSpeed" in refused(
        {"zero_optimization": {"stage": 3, "stage3_param_threshold": 0}}
    )


def test_broken_json_is_refused_at_its_line(tmp_path):
    path = tmp_path / "my.json"
    path.write_text('{\n  "bf16": {,}\n}')
    assert refused(str(path)).startswith(f"{path}:2: not JSON: ")
    path.write_text("[1]")
    assert refused(str(path)).startswith(f"{path}:1: not a JSON object")
    path.write_text('{"bf16": {},\n"bf16": {}}')
    assert refused(str(path)).startswith(f"{path}:2: bf16 stands twice, first on line 1")
    assert "the DeepSpeed JSON cannot be read" in refused(str(tmp_path / "none.json"))


def test_a_portable_config_needs_no_file(tmp_path):
    path = tmp_path / "my.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    moved = open_run(run_config(str(path))).portable
    path.unlink()
    assert open_run(moved).deepspeed_for(1, "cpu")["zero_optimization"]["stage"] == 2
