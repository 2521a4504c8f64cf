"""A Gemma 3 with a vision tower is trained on text: the tower stays what it was, and everything is exported."""

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Gemma3ForConditionalGeneration

from dist_sft.commands.export import export
from dist_sft.config.load import load_config
from dist_sft.config.sections import LoraTuning
from dist_sft.estimate.memory import memory_of_a_rank
from dist_sft.model.blocks import blocks_of
from dist_sft.model.capacity import count_trained
from dist_sft.model.configuration import load_configuration
from dist_sft.model.meta import laid_out
from dist_sft.model.text_path import beside_text, freeze_beside_text
from dist_sft.proofs.packing import prove_packing
from dist_sft.proofs.proof import refuse
from dist_sft.run.data import RunData
from dist_sft.run.opened import open_run
from dist_sft.run.trainable import refuse_untrainable
from tests.model.vision import TOWER, save_gemma3_with_vision
from tests.ranks import losses, train_on_ranks

pytestmark = pytest.mark.xdist_group("export")

TOKENS = [5, 99, 300, 301, 7, 12, 250, 42, 8, 9]
FULL, LORA = {"kind": "full"}, {"kind": "lora", "rank": 4, "dropout": 0.1}
RUNS = {"full-2": (FULL, 3, 2), "lora-2": (LORA, 3, 2), "full-1": (FULL, 0, 1), "lora-1": (LORA, 0, 1)}


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory):
    return save_gemma3_with_vision(tiny_model, tmp_path_factory.mktemp("vision") / "gemma3")


def settings(tiny_run, base, folder, name):
    tuning, stage, world = RUNS[name]
    optimizer = {"weight_decay": 0.1, "eps": 1e-3}
    return tiny_run | {
        "run": {"name": name, "dir": str(folder / name)},
        "model": {"path": str(base), "tuning": tuning, "dtype": "float32", "neftune": {"alpha": 5}},
        "train": tiny_run["train"] | {"steps": 3, "learning_rate": 0.02, "optimizer": optimizer},
        "cluster": {"workers": world, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
    }


@pytest.fixture(scope="module")
def runs(tiny_run, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision_runs")
    of = {name: settings(tiny_run, base, folder, name) for name in RUNS}
    probes = [of[name] | {"probe": {"tokens": TOKENS, "out": str(folder / f"{name}.npy")}} for name in of]
    train_on_ranks([of["full-2"], of["lora-2"], *probes[:2]], 2, 150)
    train_on_ranks([of["full-1"], of["lora-1"]], 1)
    return folder


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.tensor([TOKENS])).logits[0].float().numpy()


def stored(folder):
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def tower_of(weights):
    return {name: weight for name, weight in weights.items() if "vision" in name or "multi_modal" in name}


def is_kept(base, out):
    """All weights under the base's names; those of the tower bit for bit; all others trained."""
    before, after = stored(base), stored(out)
    assert before.keys() == after.keys() and len(tower_of(before)) > 20
    same = {name for name, weight in before.items() if torch.equal(weight, after[name])}
    assert tower_of(before).keys() <= same
    return same - tower_of(before).keys()


def test_all_weights_of_the_language_model_are_trained_and_none_of_the_tower(runs, base, tmp_path):
    out = export(runs / "full-2", tmp_path / "out")
    assert not is_kept(base, out)
    model = Gemma3ForConditionalGeneration.from_pretrained(out)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Gemma3ForConditionalGeneration"]
    np.testing.assert_allclose(logits(model), np.load(runs / "full-2.npy"), atol=1e-5, rtol=0)
    assert np.abs(logits(Gemma3ForConditionalGeneration.from_pretrained(base)) - logits(model)).max() > 0.1


def test_adapters_are_below_the_blocks_of_the_language_model_and_nowhere_else(runs, base, tmp_path):
    out = export(runs / "lora-2", tmp_path / "adapter")
    names = load_file(out / "adapter_model.safetensors").keys()
    assert len(names) == 2 * 2 * 7  # A and B of seven layers in two blocks
    assert all(".language_model.layers." in name for name in names)
    model = PeftModel.from_pretrained(Gemma3ForConditionalGeneration.from_pretrained(base), out)
    np.testing.assert_allclose(logits(model), np.load(runs / "lora-2.npy"), atol=1e-5, rtol=0)
    merged = export(runs / "lora-2", tmp_path / "merged", merge=True)
    assert all("layernorm" in name or "norm." in name or "embed" in name for name in is_kept(base, merged))
    np.testing.assert_allclose(
        logits(Gemma3ForConditionalGeneration.from_pretrained(merged)), np.load(runs / "lora-2.npy"), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_two_ranks_learn_what_one_does(runs, kind):
    one, two = losses(runs / f"{kind}-1"), losses(runs / f"{kind}-2")
    assert len(one) == 3 and one[3] != one[1]
    assert two == pytest.approx(one, rel=1e-5)


def test_a_user_is_told_once_what_stays_as_it_is(tiny_run, base, tmp_path):
    run = open_run(settings(tiny_run, base, tmp_path, "full-2"))
    (note,) = [note for note in refuse_untrainable(run) if "text never reaches" in note]
    frozen = sum(weight.numel() for weight in tower_of(stored(base)).values())
    assert note.startswith(f"{frozen:,} parameters") and "model.vision_tower, model.multi_modal_projector" in note


def test_what_is_frozen_is_counted_as_such(tiny_run, base, tmp_path):
    run = open_run(settings(tiny_run, base, tmp_path, "full-1"))
    architecture, layout = run.architecture, run.architecture.layout
    frozen = sum(weight.numel() for weight in tower_of(stored(base)).values())
    full = count_trained(layout, run.config.model.tuning)
    assert (full.frozen, full.total) == (frozen, full.base - frozen)
    adapters = count_trained(layout, LoraTuning(kind="lora", rank=1))
    assert adapters.covered == 1.0 and adapters.per_rank == 2 * (64 + 48 + 48 + 64 + 3 * 80)
    memory = memory_of_a_rank(run.config, architecture, run.resolved_deepspeed, "cpu", 0.5)
    assert memory.weights == 4 * full.base and memory.gradients == 4 * full.total


def test_blocks_are_those_of_the_language_model(base, tiny_run, tmp_path):
    architecture = load_configuration(load_config(settings(tiny_run, base, tmp_path, "full-1")).model)
    model = laid_out(architecture)
    assert len(blocks_of(model)) == 4
    freeze_beside_text(model, beside_text(architecture))
    assert len(blocks_of(model)) == 2
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(TOWER)}


def test_it_is_proved_as_any_model_is(tiny_run, base, tmp_path):
    run = open_run(settings(tiny_run, base, tmp_path, "lora-1"))
    data = RunData.of(run)
    proofs = prove_packing(run.config, run.architecture.configuration, data.train.rows.probe(data.train.steps).samples)
    refuse(proofs)
    assert all(proof.holds for proof in proofs)
