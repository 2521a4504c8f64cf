"""What is exported is what was trained: plain transformers and plain peft compute the engine's own logits."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest, whole_steps
from dist_sft.checkpoint.starts import starts_in
from dist_sft.cluster import run_folder
from dist_sft.commands.export import export
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import sha256
from dist_sft.model.saved import save_adapter
from tests.ranks import train_on_ranks

TOKENS = [5, 99, 300, 301, 7, 12, 250, 42, 8, 9]
WORLD = 2
RUNS = {
    "full-zero3": ({"kind": "full"}, 3, "float32"),
    "full-zero2": ({"kind": "full"}, 2, "float32"),
    "full-zero0": ({"kind": "full"}, 0, "float32"),
    "lora-zero3": ({"kind": "lora", "rank": 4, "alpha": 16, "dropout": 0.1}, 3, "float32"),
    "lora-zero2": ({"kind": "lora", "rank": 4, "targets": ["q_proj", "v_proj"]}, 2, "float32"),
    "full-bf16": ({"kind": "full"}, 3, "bfloat16"),
    "lora-bf16": ({"kind": "lora", "rank": 4}, 3, "bfloat16"),
    "lora-rs": ({"kind": "lora", "rank": 4, "alpha": 8, "scaling": "rslora", "b_rate_ratio": 4}, 3, "float32"),
    "lora-dora": ({"kind": "lora", "rank": 4, "dora": True, "dropout": 0.1}, 3, "float32"),
    "lora-pissa": ({"kind": "lora", "rank": 4, "init": "pissa"}, 3, "float32"),
    "lora-pissa-zero0": ({"kind": "lora", "rank": 4, "init": "pissa"}, 0, "float32"),
    "lora-whole": ({"kind": "lora", "rank": 4, "modules_to_save": ["lm_head", "embed_tokens", "norm"]}, 3, "float32"),
    "lora-all": (
        {"kind": "lora", "rank": 4, "alpha": 8, "init": "pissa", "dora": True, "scaling": "rslora",
         "targets": ["q_proj", "down_proj", "lm_head"], "modules_to_save": ["embed_tokens"]},
        3, "float32",
    ),
    "lora-tied": ({"kind": "lora", "rank": 4, "modules_to_save": ["lm_head"]}, 3, "float32"),
    "lora-tied-head": ({"kind": "lora", "rank": 4, "targets": ["v_proj", "lm_head"]}, 3, "float32"),
    "lora-dora-bf16": ({"kind": "lora", "rank": 4, "dora": True}, 3, "bfloat16"),
    "lora-pissa-bf16": ({"kind": "lora", "rank": 4, "init": "pissa"}, 3, "bfloat16"),
}  # fmt: skip

OLD = list(RUNS)[:7]


def base_of(name, tiny_model, tied_model):
    return tied_model if "tied" in name else tiny_model


@pytest.fixture(scope="module")
def runs(tiny_run, tiny_model, tied_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    trained, probes = [], []
    for name, (tuning, stage, dtype) in RUNS.items():
        settings = tiny_run | {
            "run": {"name": name, "dir": str(folder / name)},
            "model": tiny_run["model"]
            | {"tuning": tuning, "dtype": dtype, "neftune": {"alpha": 5}}
            | {"path": str(base_of(name, tiny_model, tied_model))},
            "train": tiny_run["train"] | {"steps": 4, "learning_rate": 0.02 if name in OLD else 0.005},
            "cluster": {"workers": WORLD, "gpus_per_worker": 0},
            "deepspeed": {"zero_optimization": {"stage": stage}},
        }
        trained.append(settings)
        probes.append(settings | {"probe": {"tokens": TOKENS, "out": str(folder / f"{name}.npy")}})
    train_on_ranks([*trained, *probes], WORLD)
    return folder


@torch.no_grad()
def logits(model):
    return model.eval()(torch.tensor([TOKENS])).logits[0].float().numpy()


def engine_logits(runs, name):
    return np.load(runs / f"{name}.npy")


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("full")])
def test_transformers_computes_the_logits_of_the_engine(runs, name, tmp_path, tiny_run):
    out = export(runs / name, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    tolerance = 1e-5 if model.dtype == torch.float32 else 0.05
    np.testing.assert_allclose(logits(model), engine_logits(runs, name), atol=tolerance, rtol=0)
    base = AutoModelForCausalLM.from_pretrained(tiny_run["model"]["path"])
    assert np.abs(logits(base) - engine_logits(runs, name)).max() > 0.5, "the run must have changed the model"


@pytest.mark.xdist_group("export")
@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("lora")])
def test_peft_computes_the_logits_of_the_engine_and_merged_equals_adapter(runs, name, tmp_path, tiny_model, tied_model):
    dtype, path = getattr(torch, RUNS[name][2]), base_of(name, tiny_model, tied_model)
    digests = {file.name: sha256(file) for file in path.iterdir()}
    adapter = export(runs / name, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    before = logits(base)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    np.testing.assert_allclose(
        logits(PeftModel.from_pretrained(base, adapter)), engine_logits(runs, name), atol=tolerance, rtol=0
    )
    assert np.abs(before - engine_logits(runs, name)).max() > 0.1, "the run must have changed the model"
    merged = AutoModelForCausalLM.from_pretrained(export(runs / name, tmp_path / "merged", merge=True), dtype=dtype)
    np.testing.assert_allclose(logits(merged), engine_logits(runs, name), atol=tolerance, rtol=0)
    assert {file.name: sha256(file) for file in path.iterdir()} == digests


@pytest.mark.xdist_group("export")
def test_an_adapter_from_pissa_is_one_of_twice_the_rank_for_the_base_as_it_is(runs, tmp_path):
    out = export(runs / "lora-pissa", tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)


@pytest.mark.xdist_group("export")
def test_a_dora_export_has_the_norms_and_a_whole_module_is_in_it(runs, tmp_path):
    dora = load_file(export(runs / "lora-dora", tmp_path / "dora") / "adapter_model.safetensors")
    assert sum("lora_magnitude_vector" in name for name in dora) == 14
    whole = load_file(export(runs / "lora-whole", tmp_path / "whole") / "adapter_model.safetensors")
    assert {name for name in whole if "lora_" not in name} == {
        f"base_model.model.{name}.weight" for name in ("lm_head", "model.embed_tokens", "model.norm")
    }


@pytest.mark.xdist_group("export")
def test_a_weight_of_another_shape_or_a_missing_one_is_not_saved(runs, tmp_path):
    settings = run_folder.read_config(runs / "lora-dora").model
    weights = consolidated(newest(runs / "lora-dora"))
    name = next(name for name in weights if "lora_magnitude_vector" in name)
    for wrong, message in (
        (weights | {name: torch.zeros(0)}, r"is \[0\] in the checkpoint and \[128\] in the model"),
        ({key: value for key, value in weights.items() if key != name}, "is missing"),
        (weights | {"other": torch.zeros(3)}, "other was not trained"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_adapter(settings, wrong, [1], tmp_path / "out", merge=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.xdist_group("export")
def test_a_pissa_run_is_not_exported_without_what_it_started_from(runs, tmp_path):
    settings = run_folder.read_config(runs / "lora-pissa").model
    weights, starts = consolidated(newest(runs / "lora-pissa")), starts_in(newest(runs / "lora-pissa"))
    for wrong in (None, dict(list(starts.items())[1:])):
        with pytest.raises(CheckpointError, match="in the checkpoint and"):
            save_adapter(settings, weights, [1], tmp_path / "out", merge=False, starts=wrong)
    name = next(iter(starts))
    with pytest.raises(CheckpointError, match="does not fit what it became"):
        save_adapter(settings, weights, [1], tmp_path / "out", False, starts | {name: starts[name][:-1]})


@pytest.mark.xdist_group("export")
def test_an_export_has_tokenizer_template_and_stop_token(runs, tmp_path):
    out = export(runs / "full-zero3", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>assistant\n")
    stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (stops if isinstance(stops, list) else [stops])
    assert (out / "model.safetensors").exists()


@pytest.mark.xdist_group("export")
def test_an_export_is_whole_or_not_there(runs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="no checkpoint of step 3; there are steps 4"):
        export(runs / "full-zero3", out, step=3)
    out.mkdir()
    (out / "mine").write_text("keep me")
    with pytest.raises(CheckpointError, match="the output is there already"):
        export(runs / "full-zero3", out)
    with pytest.raises(CheckpointError, match="--merge is for adapters"):
        export(runs / "full-zero3", tmp_path / "merged", merge=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "mine").read_text() == "keep me"


@pytest.mark.xdist_group("export")
def test_a_damaged_checkpoint_is_not_exported(runs, tmp_path):
    run = runs / "lora-zero2"
    (step,) = whole_steps(run / "checkpoints")
    shard = next((run / "checkpoints" / f"step_{step:08d}" / "shards").glob("*"))
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointError, match="does not have the content that was saved"):
            export(run, tmp_path / "out")
    finally:
        shard.write_bytes(content)
