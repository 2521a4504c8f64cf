"""What cannot be trained is said before anything runs."""

import json
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
