"""No weight is ever invented: the files of a model against its config.json, before anything runs and at load."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen2Config

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model.architecture import Architecture
from dist_sft.model.complete import compare, refuse_incomplete
from dist_sft.model.configuration import load_configuration
from dist_sft.model.headers import read_headers
from dist_sft.model.load import load
from tests.ranks import train_on_ranks

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
PLAIN = LlamaConfig(**SMALL, num_key_value_heads=2)
TIED = LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, bos_token_id=0, eos_token_id=0)


def written(folder, config, change=lambda weights: None, dtype=torch.float32, **saving):
    """A model with random weights, its files changed as `change` says."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder, **saving)
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        change(weights)
        save_file(weights, file, metadata={"format": "pt"})
    return ModelSection(path=str(folder), dtype="float32")


def compared(settings, cache=None):
    return compare(Architecture.load(settings, cache), read_headers(settings))


def loaded(settings, stage=0):
    config = load_configuration(settings)
    return load(settings, config, {"zero_optimization": {"stage": stage}}, 0, torch.device("cpu"), 1)


def without(*names):
    return lambda weights: [weights.pop(name) for name in names]


def renamed(old, new):
    return lambda weights: weights.update({new: weights.pop(old)})


Q = "model.layers.1.self_attn.q_proj"
FAULTS = {
    "no head": (PLAIN, without("lm_head.weight"), "1 weight is missing in its files.*: lm_head.weight"),
    "no embedding": (PLAIN, without("model.embed_tokens.weight"), "1 weight is missing.*: model.embed_tokens.weight"),
    "no embedding, tied": (TIED, without("model.embed_tokens.weight"), "missing.*: .*model.embed_tokens.weight"),
    "a norm of a block": (PLAIN, without("model.layers.0.input_layernorm.weight"), "missing.*: model.layers.0.input"),
    "misnamed": (PLAIN, renamed(f"{Q}.weight", f"{Q}.wieght"), f"1 weight is missing in its files.*: {Q}.weight"),
    "another shape": (
        PLAIN, lambda w: w.update({f"{Q}.weight": torch.zeros(16, 32)}),
        rf"1 weight is not what config.json describes: {Q}.weight is \[16, 32\] in its files, and \[32, 32\]",
    ),
    "a layer more": (
        PLAIN, lambda w: w.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}),
        "1 weight is in its files for which config.json has no place: model.layers.2.mlp.up_proj.weight",
    ),
    "a bias": (PLAIN, lambda w: w.update({f"{Q}.bias": torch.zeros(32)}), f"no place: {Q}.bias"),
    "eight bits": (
        PLAIN, lambda w: w.update({f"{Q}.weight": w[f"{Q}.weight"].to(torch.float8_e4m3fn)}),
        f"{Q}.weight is F8_E4M3 in its files, and floating point",
    ),
    "an expert": (
        MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2),
        without("model.layers.1.block_sparse_moe.experts.1.w2.weight"), "missing|not what",
    ),
    "a bias of GPT-2": (GPT2, without("transformer.h.1.attn.c_attn.bias"), "missing.*: transformer.h.1.attn"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_missing_left_over_or_of_another_shape_is_refused_by_name(tmp_path, name):
    config, change, message = FAULTS[name]
    with pytest.raises(ModelError, match=message):
        refuse_incomplete(settings := written(tmp_path, config, change), Architecture.load(settings, None))


@pytest.mark.parametrize("name", ["no head", "misnamed", "another shape", "a layer more"])
def test_the_report_of_the_load_itself_is_refused_too(tmp_path, name, monkeypatch):
    monkeypatch.setattr("dist_sft.model.load.read_headers", lambda *_, **__: None)
    config, change, message = FAULTS[name]
    with pytest.raises(ModelError, match=message):
        loaded(written(tmp_path, config, change))


@pytest.mark.parametrize("stage", [0, 3])
def test_no_rank_trains_a_head_that_was_invented(tiny_run, tiny_model, tmp_path, stage):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    (runs, faults) = (
        [],
        {
            "lm_head.weight": "1 weight is missing in its files, and would be random: lm_head.weight",
            "model.norm.weight": "1 weight is not what config.json describes: model.norm.weight is",
        },
    )
    for name in faults:
        shutil.copytree(folder, tmp_path / name)
        held = dict(weights)
        one = held.pop(name)
        held |= {name: one[:-1].clone()} if "norm" in name else {}
        save_file(held, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        runs.append(
            tiny_run
            | {
                "run": {"name": name, "dir": str(tmp_path / "run" / name)},
                "deepspeed": {"zero_optimization": {"stage": stage}},
                "model": tiny_run["model"] | {"path": str(tmp_path / name)},
            }
        )
    for error, expected in zip(train_on_ranks(runs, 1, check=False), faults.values(), strict=True):
        assert error.startswith("ModelError: ") and expected in error


def buffers(weights):
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


def masks(weights):
    weights |= {"transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9, dtype=torch.bool)}
    weights |= {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}


def bare(weights):
    """As a model was saved that had no head around it: openai-community/gpt2 is one."""
    for name in list(weights):
        weights[name.removeprefix("transformer.").removeprefix("model.")] = weights.pop(name)


SOUND = {
    "plain": (PLAIN, lambda weights: None, {}),
    "float16": (PLAIN, lambda weights: weights.update({k: v.half() for k, v in weights.items()}), {}),
    "bfloat16": (PLAIN, lambda weights: weights.update({k: v.bfloat16() for k, v in weights.items()}), {}),
    "in many files": (PLAIN, lambda weights: None, {"max_shard_size": "20KB"}),
    "tied": (TIED, lambda weights: None, {}),
    "tied, with the head, too": (
        TIED, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}), {}
    ),
    "tied, as the head alone": (TIED, renamed("model.embed_tokens.weight", "lm_head.weight"), {}),
    "rotary tables": (PLAIN, buffers, {}),
    "masks of GPT-2": (GPT2, masks, {}),
    "without a prefix": (GPT2, bare, {}),
    "a base without a prefix": (TIED, bare, {}),
    "experts": (MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2), lambda weights: None, {}),
    "biases": (Qwen2Config(**SMALL, num_key_value_heads=2), lambda weights: None, {}),
    "multi-token prediction": (
        PLAIN, lambda w: w.update({"mtp.layers.0.mlp.up_proj.weight": torch.zeros(48, 32)}), {}
    ),
    "multi-token prediction behind the last layer": (
        LlamaConfig(**SMALL, num_nextn_predict_layers=1),
        lambda w: w.update({"model.layers.2.eh_proj.weight": torch.zeros(48, 32)}), {},
    ),
}  # fmt: skip
UNUSED = {"rotary tables": 1, "masks of GPT-2": 2, "multi-token prediction": 1,
          "multi-token prediction behind the last layer": 1}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_model_passes_and_what_is_not_used_is_counted(tmp_path, name):
    config, change, saving = SOUND[name]
    settings = written(tmp_path, config, change, **saving)
    found = compared(settings)
    assert (found.missing, found.left, found.wrong, len(found.unused)) == ((), (), (), UNUSED.get(name, 0)), found
    found.refuse("")
    assert bool(found.notes()) == (name in UNUSED)
    if name != "experts":
        loaded(settings)


@pytest.mark.parametrize("parts", [False, True])
def test_pickled_weights_are_compared_too(tmp_path, parts):
    settings = written(tmp_path, PLAIN)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    files = {"pytorch_model.bin": weights}
    if parts:
        names = sorted(weights)
        files = {"a.bin": {n: weights[n] for n in names[:9]}, "b.bin": {n: weights[n] for n in names[9:]}}
        index = {"weight_map": {name: file for file, held in files.items() for name in held}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for file, held in files.items():
        torch.save(held, tmp_path / file)
    assert not compared(settings).missing
    last, held = list(files.items())[-1]
    name = sorted(held)[-1]
    torch.save({key: value for key, value in held.items() if key != name}, tmp_path / last)
    assert compared(settings).missing == (name,)


def test_an_index_that_names_what_its_file_does_not_hold(tmp_path):
    settings = written(tmp_path, PLAIN, max_shard_size="20KB")
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name} or {"x": torch.ones(1)}, file)
    assert compared(settings).missing == (name,)


def test_a_file_that_was_cut(tmp_path):
    settings = written(tmp_path, PLAIN)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as content:
        content.truncate(size - 100)
    with pytest.raises(ModelError, match=f"the file has {size - 100} bytes of {size}: it was cut"):
        read_headers(settings)
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="no weights can be read"):
        read_headers(settings)


def test_a_model_in_the_hubs_cache(tmp_path, monkeypatch):
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--who--what"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    written(snapshot, PLAIN, without("lm_head.weight"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = ModelSection(path="who/what")
    with pytest.raises(ModelError, match=r"^who/what: 1 weight is missing in its files.*: lm_head\.weight"):
        refuse_incomplete(settings, Architecture.of(PLAIN))


SECOND = """
import sys
from pathlib import Path
from dist_sft.config.sections import ModelSection
from dist_sft.model.architecture import Architecture
from dist_sft.model.complete import refuse_incomplete
settings = ModelSection(path=sys.argv[1])
print(refuse_incomplete(settings, Architecture.load(settings, Path(sys.argv[2]))))
assert not (found := {"torch", "transformers"} & sys.modules.keys()), found
"""


@pytest.mark.parametrize("change", [lambda weights: None, buffers])
def test_the_second_look_needs_no_torch(tmp_path, change):
    settings = written(tmp_path / "model", PLAIN, change)
    first = refuse_incomplete(settings, Architecture.load(settings, tmp_path / "cache"))
    command = [sys.executable, "-c", SECOND, settings.path, tmp_path / "cache"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.returncode) == (f"{first}\n", 0), ended.stderr


def test_another_config_is_another_layout(tmp_path):
    settings = written(tmp_path / "model", PLAIN)
    assert not compared(settings, tmp_path / "cache").missing
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 3}))
    assert len(compared(settings, tmp_path / "cache").missing) == 9
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the cache should be")
    assert len(compared(settings, tmp_path / "cache").missing) == 9
