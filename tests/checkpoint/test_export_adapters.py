"""LoRA's relatives are exported as adapters that plain peft loads onto the base as it is, or merged, or not at all."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from dist_sft.checkpoint.starts import starts_in
from dist_sft.commands.export import export
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import sha256
from dist_sft.model.saved import save_adapter
from dist_sft.run import folder as run_folder
from tests.checkpoint.test_export import engine_logits, logits, train_and_probe

RUNS = {
    "dora": ({"dora": True, "dropout": 0.1}, 3, "float32"),
    "pissa": ({"init": "pissa"}, 3, "float32"),
    "whole": ({"modules_to_save": ["lm_head", "embed_tokens", "norm"]}, 3, "float32"),
    "all": (
        {"alpha": 8, "init": "pissa", "dora": True, "scaling": "rslora", "targets": ["q_proj", "down_proj"],
         "modules_to_save": ["embed_tokens"]},
        3, "float32",
    ),
    "pissa-head": ({"init": "pissa", "targets": ["q_proj", "lm_head"]}, 3, "float32"),
    "tied": ({"modules_to_save": ["lm_head"]}, 3, "float32"),
    "tied-head": ({"targets": ["v_proj", "lm_head"]}, 3, "float32"),
    "pissa-bf16": ({"init": "pissa"}, 3, "bfloat16"),
}  # fmt: skip
MORE_RUNS = {
    "rslora+": ({"alpha": 8, "scaling": "rslora", "b_rate_ratio": 4}, 3, "float32"),
    "pissa-zero0": ({"init": "pissa"}, 0, "float32"),
    "dora-bf16": ({"dora": True}, 3, "bfloat16"),
}
EVERY_RUN = RUNS | MORE_RUNS


@pytest.fixture(scope="module")
def bases(tiny_model, tied_model):
    """The folder of the base model, by name of the run."""
    return {name: tied_model if name.startswith("tied") else tiny_model for name in EVERY_RUN}


@pytest.fixture(scope="module")
def runs(request, tiny_run, bases, tmp_path_factory):
    wanted = EVERY_RUN if request.config.getoption("--soak") else RUNS
    runs = {
        name: ({"kind": "lora", "rank": 4, **tuning}, *rest, bases[name]) for name, (tuning, *rest) in wanted.items()
    }
    return train_and_probe(tiny_run, tmp_path_factory.mktemp("export_adapters"), runs, rate=0.005)


@pytest.mark.xdist_group("export-adapters")
@pytest.mark.parametrize("name", [*RUNS, *(pytest.param(name, marks=pytest.mark.soak) for name in MORE_RUNS)])
def test_peft_and_a_merged_model_compute_the_logits_of_the_engine_and_the_base_is_untouched(
    runs, name, tmp_path, bases
):
    dtype = getattr(torch, EVERY_RUN[name][2])
    digests = {file.name: sha256(file) for file in bases[name].iterdir()}
    base = AutoModelForCausalLM.from_pretrained(bases[name], dtype=dtype)
    before, expected = logits(base), engine_logits(runs, name)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    adapted = PeftModel.from_pretrained(base, export(runs / name, tmp_path / "adapter"))
    np.testing.assert_allclose(logits(adapted), expected, atol=tolerance, rtol=0)
    assert np.abs(before - expected).max() > 0.1, "the run must have changed the model"
    merged = AutoModelForCausalLM.from_pretrained(export(runs / name, tmp_path / "merged", merge=True), dtype=dtype)
    np.testing.assert_allclose(logits(merged), expected, atol=tolerance, rtol=0)
    assert {file.name: sha256(file) for file in bases[name].iterdir()} == digests


@pytest.mark.xdist_group("export-adapters")
def test_an_adapter_from_pissa_is_one_of_twice_the_rank_for_the_base_as_it_is(runs, tmp_path):
    out = export(runs / "pissa", tmp_path / "out")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)


@pytest.mark.xdist_group("export-adapters")
@pytest.mark.parametrize("name", ["all", "tied-head", "whole"])
def test_a_base_in_other_files_is_merged_alike(runs, name, bases, tmp_path):
    """With pytorch_model.bin, which cannot be read a weight at a time."""
    other = tmp_path / "bin"
    shutil.copytree(bases[name], other)
    weights = AutoModelForCausalLM.from_pretrained(other).state_dict()
    torch.save(weights, other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    settings = run_folder.read_config(runs / name).model.model_copy(update={"path": str(other)})
    weights, starts = consolidated(newest(runs / name)), starts_in(newest(runs / name))
    out = tmp_path / "merged"
    out.mkdir()
    save_adapter(settings, weights, [1], out, merge=True, starts=starts)
    expected = load_file(export(runs / name, tmp_path / "expected", merge=True) / "model.safetensors")
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.xdist_group("export-adapters")
def test_a_dora_export_has_the_norms_and_a_whole_module_is_in_it(runs, tmp_path):
    dora = load_file(export(runs / "dora", tmp_path / "dora") / "adapter_model.safetensors")
    assert sum("lora_magnitude_vector" in name for name in dora) == 14
    whole = load_file(export(runs / "whole", tmp_path / "whole") / "adapter_model.safetensors")
    assert {name for name in whole if "lora_" not in name} == {
        f"base_model.model.{name}.weight" for name in ("lm_head", "model.embed_tokens", "model.norm")
    }


@pytest.mark.xdist_group("export-adapters")
def test_a_weight_of_another_shape_or_a_missing_one_is_not_saved(runs, tmp_path):
    settings = run_folder.read_config(runs / "dora").model
    weights = dict(consolidated(newest(runs / "dora")))
    name = next(name for name in weights if "lora_magnitude_vector" in name)
    for wrong, message in (
        (weights | {name: torch.zeros(0)}, r"is \[0\] in the checkpoint and \[128\] in the model"),
        ({key: value for key, value in weights.items() if key != name}, "is missing"),
        (weights | {"other": torch.zeros(3)}, "other was not trained"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_adapter(settings, wrong, [1], tmp_path / "out", merge=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.xdist_group("export-adapters")
def test_a_pissa_run_is_not_exported_without_what_it_started_from(runs, tmp_path):
    settings = run_folder.read_config(runs / "pissa").model
    weights, starts = consolidated(newest(runs / "pissa")), starts_in(newest(runs / "pissa"))
    for wrong in (None, dict(list(starts.items())[1:])):
        with pytest.raises(CheckpointError, match="in the checkpoint and"):
            save_adapter(settings, weights, [1], tmp_path / "out", merge=False, starts=wrong)
    name = next(iter(starts))
    with pytest.raises(CheckpointError, match="does not fit what it became"):
        save_adapter(settings, weights, [1], tmp_path / "out", False, starts | {name: starts[name][:-1]})
