"""The proofs of `check` on the run's own model and samples."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import SftError
from dist_sft.model import head
from dist_sft.model.attention import segments
from dist_sft.model.context import PackContext
from dist_sft.model.rounding import difference, largest
from dist_sft.proofs import packing
from dist_sft.proofs.packing import prove_packing
from dist_sft.proofs.proof import Proof, refuse
from dist_sft.run.data import RunData
from dist_sft.run.opened import open_run


@pytest.fixture
def config(tiny_run):
    return RunConfig.model_validate(tiny_run | {"model": tiny_run["model"] | {"neftune": {"alpha": 5}}})


def proofs_of(config):
    data = RunData.of(open_run(config))
    return prove_packing(config, data.run.architecture.configuration, data.train.rows.probe(data.train.steps).samples)


def test_a_sound_model_is_proved(config):
    proofs = proofs_of(config)
    refuse(proofs)
    assert all(proof.holds for proof in proofs) and len(proofs) == 5
    assert all(proof.detail.endswith("the model") for proof in proofs)


def test_a_model_that_is_too_large_is_proved_on_a_copy(config, monkeypatch):
    monkeypatch.setattr(packing, "LARGEST", 1000)
    proofs = proofs_of(config)
    refuse(proofs)
    assert "a copy of 0." in proofs[-1].detail


def failing(proofs):
    """Names of the proofs that do not hold, each by ten times its limit or more."""
    wrong = [proof for proof in proofs if not proof.holds]
    assert all(proof.figure is None or proof.figure >= 10 * proof.limit for proof in wrong), wrong
    return {proof.name for proof in wrong}


def test_a_pack_that_leaks_fails_every_proof_of_isolation(config, monkeypatch):
    enter = PackContext.enter

    def leak(self, *rest):
        enter(self, *rest)
        self.ends = [0, self.ends[-1]]

    monkeypatch.setattr(PackContext, "enter", leak)
    proofs = proofs_of(config)
    assert failing(proofs) == {proof.name for proof in proofs if "head" not in proof.name}
    with pytest.raises(SftError, match="samples of a pack see each other") as error:
        refuse(proofs)
    assert "mix tokens by attention alone" in error.value.fix


def test_noise_that_depends_on_the_pack_fails_the_proof_of_gradients(config, monkeypatch):
    """transformers' own NEFTune, which scales by the length of the whole pack."""
    enter = PackContext.enter

    def whole(self, *rest):
        enter(self, *rest)
        self.lengths = torch.full_like(self.lengths, len(self.lengths))

    monkeypatch.setattr(PackContext, "enter", whole)
    assert failing(proofs_of(config)) == {"packed as alone: gradients"}


def test_a_head_that_is_wrong_fails_its_proof(config, monkeypatch):
    exact = head.token_scores
    monkeypatch.setattr(head, "token_scores", lambda *given: exact(*given) * 1.01)
    assert failing(proofs_of(config)) == {"loss by the head as by all logits"}


def test_a_figure_that_is_no_number_does_not_hold():
    assert not Proof.measured("it", float("nan"), 1.0).holds
    with pytest.raises(SftError, match=r"this does not hold: it \(nan, at most 1\)"):
        refuse([Proof.measured("it", float("nan"), 1.0)])


def test_a_difference_that_is_no_number_is_not_lost():
    one, none = torch.ones(2), torch.full((2,), torch.nan)
    for found in ([one, none], [none, one]):
        assert math.isnan(difference(found, [one, one])) and math.isnan(difference([one, one], found))
    assert math.isnan(largest([1.0, math.nan])) and largest([]) == 0


@pytest.mark.parametrize("name", ["flash", "varlen"])
def test_attention_that_needs_a_gpu_is_stood_in_for(config, name):
    kernel = config.model.model_copy(update={"attention": name})
    on_gpus = config.cluster.model_copy(update={"gpus_per_worker": 1})
    proofs = proofs_of(config.model_copy(update={"model": kernel, "cluster": on_gpus}))
    refuse(proofs)
    assert all(f"segments in place of {name}" in proof.detail for proof in proofs)


@pytest.fixture
def sliding(config, tiny_model, tmp_path):
    """The run with a Mistral whose window is longer than any sample of a proof."""
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    mistral = MistralConfig(**size, num_key_value_heads=2, vocab_size=len(tokenizer), sliding_window=200)
    AutoModelForCausalLM.from_config(mistral).save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "mistral")})})


def test_a_sliding_window_is_proved_on_a_copy_in_which_it_slides(sliding, monkeypatch):
    proofs = proofs_of(sliding)
    refuse(proofs)
    assert [proof.name for proof in proofs[:2]] == ["no sample sees another, no token the future"] * 2
    assert proofs[0].detail == "the model" and proofs[1].detail.endswith("windows of 8 tokens")
    exact = segments._fused

    def all_of_the_band(query, key, value, call, near):
        return exact(query, key, value, call, near if near is None else torch.ones_like(near))

    monkeypatch.setattr(segments, "_fused", all_of_the_band)
    assert [proof.holds for proof in proofs_of(sliding)[:2]] == [True, False]
