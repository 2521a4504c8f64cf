"""What cannot be trained is said before anything runs."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def model(run, tmp_path):
    """A copy of the run's model, to be broken, and the override that names it."""
    folder = tmp_path / "model"
    shutil.copytree(run.model, folder)
    return folder


def changed(folder, **keys):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


COMMANDS = [("check", "--fast"), ("plan",), ("submit", "--address", "http://127.0.0.1:9"), ("train",)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_m1_a_checkpoint_without_its_head_is_refused_by_name(refused, run, model, tmp_path, command):
    weights = load_file(model / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    said = refused(*command, run.file, f"model.path={model}", f"run.dir={tmp_path / 'run'}")
    assert said.startswith(f"{model}: 1 weight is missing in its files, and would be random: lm_head.weight\n  fix: ")


def test_weights_that_transformers_does_not_use_pass_and_are_counted(sft, run, model, tmp_path):
    import torch

    weights = load_file(model / "model.safetensors")
    weights |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    note = "2 weights are in the model's files and not used by transformers: model.layers.0.self_attn.rotary_emb"
    given = [run.file, f"model.path={model}", f"run.dir={tmp_path / 'run'}"]
    report = sft("check", "--fast", "--json", *given).values[0]
    assert any(line.startswith(note) for line in report["warnings"])
    assert sft("plan", "--json", *given).values[0]["notes"][0].startswith(note)


BERT = {"model_type": "bert", "architectures": ["BertLMHeadModel"], "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0,
        "eos_token_id": 0, "attn_pdrop": 0.0}  # fmt: skip
OPT = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64,
       "max_position_embeddings": 64, "word_embed_proj_dim": 32, "dropout": 0.0}  # fmt: skip
GPTJ = {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 4,
        "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AHEAD = r"looks ahead in transformers: a token's logits change by \S+ of the largest one with a later token"
OWN = {"auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}, "architectures": ["MineForCausalLM"]}

REFUSED = {
    "m3: bert": (BERT, f"bert {AHEAD}"),
    "m3: electra": (BERT | {"model_type": "electra", "embedding_size": 32}, f"electra {AHEAD}"),
    "m3: roformer": (BERT | {"model_type": "roformer", "embedding_size": 32}, f"roformer {AHEAD}"),
    "m3: xlm-roberta": (BERT | {"model_type": "xlm-roberta"}, f"xlm-roberta {AHEAD}"),
    "m4: 4-bit": ({"quantization_config": BITS}, r"its weights are quantised \(bitsandbytes\), and training needs"),
    "m4: fp8": ({"quantization_config": BLOCKS}, r"its weights are quantised \(fp8\), and training needs them whole"),
    "m4: gptq": ({"quantization_config": GPTQ}, r"its weights are quantised \(gptq\), and training needs them whole"),
    "m4: another": ({"quantization_config": {"quant_method": "new"}}, r"its weights are quantised \(new\)"),
    "m5: gpt2": (GPT2, r"the model has 64 positions, and a sample may have 1024 tokens \(data.context_length\)"),
    "m5: opt": (OPT, "the model has 64 positions, and a sample may have 1024 tokens"),
    "no interface: gptj": (GPTJ, "the layers of gptj do not use transformers' attention interface"),
    "m5: learned by none": (GPT2 | {"n_positions": 130}, "the model has 130 positions"),
    "own code": (OWN, r"MineForCausalLM is code of the model's own repository \(auto_map in its config.json\)"),
    "own code, own type": (OWN | {"model_type": "mine"}, "MineForCausalLM is code of the model's own repository"),
    "states": ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
               "layers of kind linear_attention carry a state from token to token"),
    "experts": ({"model_type": "mixtral", "num_local_experts": 2}, "mixtures of experts are not supported yet"),
    "two halves": ({"model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
                   "bart is an encoder with a decoder: half of it would be left out"),
    "biases on attention": ({"model_type": "bloom", "n_layer": 2, "n_head": 2, "hidden_size": 32}, "bloom"),
}  # fmt: skip


def write_config(model, keys):
    """These keys beside those of the model, or alone where they are of another type."""
    kept = json.loads((model / "config.json").read_text())
    if "model_type" in keys:
        kept = {"vocab_size": kept["vocab_size"]}
    (model / "config.json").write_text(json.dumps(kept | keys))


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_config_json_says_is_refused_before_anything_runs(refused, run, model, tmp_path, case):
    keys, message = REFUSED[case]
    write_config(model, keys)
    said = refused("check", "--fast", run.file, f"model.path={model}", f"run.dir={tmp_path / 'run'}")
    what, fix = said.split("\n  fix: ")
    assert re.search(message, what), said
    assert fix and "same command" not in said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("case", ["m3: bert", "m4: fp8", "m5: gpt2"])
def test_all_commands_say_the_same(refused, run, model, tmp_path, command, case):
    keys, message = REFUSED[case]
    write_config(model, keys)
    said = refused(*command, run.file, f"model.path={model}", f"run.dir={tmp_path / 'run'}")
    assert re.search(message, said), said


def add_tokens(model, *tokens):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(model)
    return len(tokenizer)


@pytest.mark.parametrize("tokens", [("<a>", "<b>", "<c>"), ("<one>",), ("<image>", "<think>")])
def test_m2_a_tokenizer_with_ids_beyond_the_embedding(refused, run, model, tmp_path, tokens):
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    size = add_tokens(model, *tokens)
    said = refused("check", "--fast", run.file, f"model.path={model}", f"run.dir={tmp_path / 'run'}")
    what = (
        f"{model}: the tokenizer has ids up to {size - 1} ('{tokens[0]}' is {rows}), and the embedding has {rows} rows"
    )
    assert said.startswith(f"{what}\n  fix: give the model rows for them: model.resize_token_embeddings({size})")


def test_tokens_that_stand_for_images_pass_where_text_cannot_hold_them(sft, run, model, tmp_path):
    """Gemma 3 of 1B has a tokenizer with <image_soft_token>, and no row for it."""
    add_tokens(model, "<image_soft_token>")
    ended = sft("check", "--fast", "--json", run.file, f"model.path={model}", f"run.dir={tmp_path / 'run'}")
    assert ended.code == 0, ended
    assert any("these stand for no text" in warning for warning in ended.values[0]["warnings"])


def test_rope_beyond_what_the_model_knows_is_a_warning_with_the_figure(sft, run, model, tmp_path):
    changed(model, max_position_embeddings=10)
    given = [run.file, f"model.path={model}", f"run.dir={tmp_path / 'run'}"]
    report = sft("check", "--fast", "--json", *given).values[0]
    longest = report["longest"]
    said = f"samples have up to {longest} tokens, and {model} knows positions up to 10 (max_position_embeddings): "
    said += f"{longest / 10:.3g} times as far it has not seen"
    assert any(warning.startswith(said) for warning in report["warnings"])
    assert said in str(sft("plan", "--json", *given).values[0]["notes"])


def test_a_sound_model_has_no_note(sft, run):
    assert sft("check", "--fast", "--json", run.file).values[0]["warnings"] == []


def test_kernels_that_must_be_compiled_want_a_compiler(monkeypatch, tmp_path):
    from dist_sft.core.errors import ConfigError
    from dist_sft.run.trainable import COMPILED, refuse_without_compiler

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr("dist_sft.run.trainable.CUDA", str(tmp_path / "none"))
    refuse_without_compiler({"zero_optimization": {"stage": 3}})
    for key in COMPILED:
        with pytest.raises(ConfigError, match=f"{key} needs CUDA kernels that DeepSpeed compiles"):
            refuse_without_compiler({"zero_optimization": {key: True}})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    refuse_without_compiler({"zero_optimization": {COMPILED[0]: True}})
