"""The proofs of `check` on the run's own model and samples."""

import pytest
import torch

from dist_sft.cluster.run_data import RunData
from dist_sft.commands.proofs import packing
from dist_sft.commands.proofs.packing import model_to_prove, prove_packing
from dist_sft.commands.proofs.proof import Proof, refuse
from dist_sft.config.sections import RunConfig
from dist_sft.core.errors import SftError
from dist_sft.model import head
from dist_sft.model.context import PackContext
from dist_sft.model.load import load_config


@pytest.fixture
def config(tiny_run):
    return RunConfig.model_validate(tiny_run | {"model": tiny_run["model"] | {"neftune": {"alpha": 5}}})


def proofs_of(config):
    data = RunData.of(config)
    with model_to_prove(config, load_config(config.model)) as (model, which):
        return prove_packing(config, model, data.train.rows.probe(data.train.steps).samples, which)


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
    return {proof.name for proof in proofs if not proof.holds}


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
