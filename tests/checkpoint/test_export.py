"""What is exported is what was trained: plain transformers and plain peft compute the engine's own logits."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dist_sft.checkpoint.layout import whole_steps
from dist_sft.commands.export import export
from dist_sft.core.errors import CheckpointError
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
}


def train_and_probe(tiny_run, folder, runs, rate=0.02):
    """Train each run, then write its engine's logits. runs: {name: (tuning, ZeRO stage, dtype, model's folder)}."""
    trained, probes = [], []
    for name, (tuning, stage, dtype, path) in runs.items():
        settings = tiny_run | {
            "run": {"name": name, "dir": str(folder / name)},
            "model": {"path": str(path), "tuning": tuning, "dtype": dtype, "neftune": {"alpha": 5}},
            "train": tiny_run["train"] | {"steps": 4, "learning_rate": rate},
            "cluster": {"workers": WORLD, "gpus_per_worker": 0},
            "deepspeed": {"zero_optimization": {"stage": stage}},
        }
        trained.append(settings)
        probes.append(settings | {"probe": {"tokens": TOKENS, "out": str(folder / f"{name}.npy")}})
    train_on_ranks([*trained, *probes], WORLD)
    return folder


@pytest.fixture(scope="module")
def published(tiny_model, tmp_path_factory):
    """The tiny model with two chat templates, and with a generation config that transformers would not save."""
    folder = tmp_path_factory.mktemp("published") / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = {name: f"{{# {name} #}}{tokenizer.chat_template}" for name in ("default", "tool_use")}
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [9, 7], "temperature": 0.6, "top_p": 0.9}')
    return folder


@pytest.fixture(scope="module")
def runs(tiny_run, tiny_model, published, tmp_path_factory):
    runs = {name: (*run, tiny_model) for name, run in RUNS.items()}
    runs |= {f"published-{name}": (*RUNS[name], published) for name in ("full-zero0", "lora-zero2")}
    return train_and_probe(tiny_run, tmp_path_factory.mktemp("export"), runs)


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
def test_peft_computes_the_logits_of_the_engine_and_merged_equals_adapter(runs, name, tmp_path, tiny_run):
    dtype = getattr(torch, RUNS[name][2])
    adapter = export(runs / name, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_run["model"]["path"], dtype=dtype)
    before = logits(base)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    np.testing.assert_allclose(
        logits(PeftModel.from_pretrained(base, adapter)), engine_logits(runs, name), atol=tolerance, rtol=0
    )
    assert np.abs(before - engine_logits(runs, name)).max() > 0.1, "the run must have changed the model"
    merged = AutoModelForCausalLM.from_pretrained(export(runs / name, tmp_path / "merged", merge=True), dtype=dtype)
    np.testing.assert_allclose(logits(merged), engine_logits(runs, name), atol=tolerance, rtol=0)


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
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("run", ["full-zero0", "lora-zero2"])
def test_an_export_stops_on_what_was_learned_and_where_its_base_did(runs, run, merge, tmp_path):
    out = export(runs / f"published-{run}", tmp_path / "out", merge=merge and run.startswith("lora"))
    stop = AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|im_end|>")
    saved = json.loads((out / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [stop, 9, 7] and (saved["temperature"], saved["top_p"]) == (0.6, 0.9)
    if not (out / "adapter_config.json").exists():
        assert AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id == [stop, 9, 7]


@pytest.mark.xdist_group("export")
def test_an_export_says_what_transformers_will_not_know(sft, runs, tmp_path):
    run, base = runs / "published-lora-zero2", "the base model does not stop on every token that training taught"
    assert base in sft("export", run, tmp_path / "adapter").out
    assert sft("export", run, tmp_path / "merged", "--merge", "--json").values[0]["notes"] == []
    assert sft("export", runs / "lora-zero2", tmp_path / "same", "--json").values[0]["notes"] == []


@pytest.mark.xdist_group("export")
def test_an_export_has_the_template_for_tools_as_well(runs, published, tmp_path):
    out = export(runs / "published-full-zero0", tmp_path / "out")
    exported, base = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(published)
    assert exported.chat_template == base.chat_template and set(exported.chat_template) == {"default", "tool_use"}
    assert exported.get_chat_template(tools=[{}]).startswith("{# tool_use #}")


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
    shard = next((run / "checkpoints" / f"step_{step:08d}").glob("*/rank*.safetensors"))
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointError, match="does not have the content that was saved"):
            export(run, tmp_path / "out")
    finally:
        shard.write_bytes(content)
