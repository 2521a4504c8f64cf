"""Ranks that share a pack learn what one rank learns from it whole."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from dist_sft.config.run_config import RunConfig
from dist_sft.run.data import RunData
from dist_sft.run.opened import open_run
from tests.ranks import losses, records, train_on_ranks

STEPS = 5


@dataclass(frozen=True)
class Case:
    """One way to execute the same run."""

    world: int
    neighbours: int
    stage: int
    packing: bool = True
    recompute: bool = False

    def settings(self, base, folder):
        sharded = {"stage3_param_persistence_threshold": 0} if self.stage == 3 else {}
        return base | {
            "run": {"name": "parity", "dir": str(self.folder(folder)), "seed": 3},
            "model": base["model"] | {"gradient_checkpointing": self.recompute},
            "train": base["train"] | {"packing": self.packing, "sequence_parallel": self.neighbours},
            "deepspeed": {"zero_optimization": {"stage": self.stage, **sharded}},
            "cluster": {"workers": self.world, "gpus_per_worker": 0},
        }

    def folder(self, folder):
        return folder / repr(self).replace(" ", "")


REFERENCE = Case(1, 1, 0, packing=False)
WHOLE = [
    Case(2, 2, 3),
    Case(2, 2, 0, packing=False),
    Case(2, 2, 3, packing=False, recompute=True),
    Case(4, 2, 3),
]
CASES = {2: [REFERENCE, *WHOLE], 1: [REFERENCE, Case(2, 2, 3)]}
"""By heads of keys; a single one goes to both neighbours."""


@pytest.fixture(scope="module", params=CASES, ids=["grouped", "one-head-of-keys"])
def base(request, tiny_run, tmp_path_factory):
    """A run with sliding windows, grouped heads, noise, dropout, weights that differ, and held-out rows."""
    folder = tmp_path_factory.mktemp("mistral")
    words = AutoTokenizer.from_pretrained(tiny_run["model"]["path"])
    words.save_pretrained(folder)
    config = MistralConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=request.param, sliding_window=24, max_position_embeddings=256, initializer_range=0.2,
        pad_token_id=words.pad_token_id, eos_token_id=words.eos_token_id, bos_token_id=None, attention_dropout=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(folder)
    train = {"steps": STEPS, "optimizer": {"eps": 1e-2, "weight_decay": 0.1}, "learning_rate": 0.02, "warmup": 0}
    source = tiny_run["data"]["sources"][0]
    settings = {
        "model": {"path": str(folder), "dtype": "float32", "neftune": {"alpha": 5}},
        "train": tiny_run["train"] | train,
        "eval": {"source": source, "samples": 16, "every": 3},
    }
    return tiny_run | settings, CASES[request.param]


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """The folders of all runs, by case."""
    settings, cases = base
    folder = tmp_path_factory.mktemp("runs")
    for world in sorted({case.world for case in cases}):
        train_on_ranks([case.settings(settings, folder) for case in cases if case.world == world], world)
    return {case: case.folder(folder) for case in cases}


@pytest.mark.xdist_group("parity")
def test_losses_gradients_and_held_out_losses_are_the_same(runs):
    expected = losses(runs[REFERENCE])
    norms = [record["grad_norm"] for record in records(runs[REFERENCE])]
    held_out = [record["loss"] for record in records(runs[REFERENCE], "eval")]
    assert len(expected) == STEPS and len(held_out) == 3
    for case, folder in runs.items():
        assert losses(folder) == pytest.approx(expected, abs=1e-5), case
        assert [record["grad_norm"] for record in records(folder)] == pytest.approx(norms, rel=1e-4), case
        assert [record["loss"] for record in records(folder, "eval")] == pytest.approx(held_out, abs=1e-5), case


@pytest.mark.xdist_group("parity")
def test_parameters_are_the_same(runs):
    expected = consolidated(newest(runs[REFERENCE]))
    for case, folder in runs.items():
        for name, value in consolidated(newest(folder)).items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0, msg=f"{case} {name}")


@pytest.mark.xdist_group("parity")
def test_groups_of_neighbours_get_packs_of_their_own(runs):
    """Else four ranks would have done what two do."""
    for case, folder in runs.items():
        first = records(folder)[0]
        assert first["micro_steps"] == (1 if case.packing else 12 * case.neighbours // case.world)
        assert case.packing or (first["padding"] > 0) == (case.neighbours > 1)
        assert first["dummies"] == 0


def test_these_rows_have_halves_without_anything_to_learn(base):
    config = RunConfig.model_validate(base[0])
    train = RunData.of(open_run(config)).train
    samples = train.rows.encode(0, train.steps.samples(0)).samples
    halves = [np.array_split(sample.weights, 2) for sample in samples]
    assert any(not first.any() and second.any() for first, second in halves)
    assert any(first.any() for first, _ in halves)
