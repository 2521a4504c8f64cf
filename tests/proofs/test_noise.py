"""The proof of the noise law: it holds for ours, and finds noise that is scaled by the pack."""

import numpy as np
import pytest
import torch

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.noise import Neftune
from dist_sft.model.context import PackContext
from dist_sft.proofs import noise as proof
from dist_sft.proofs.noise import prove_noise


def samples():
    return [
        EncodedSample(np.zeros(n, np.int32), np.r_[np.zeros(n // 2), np.ones(n - n // 2)].astype(np.float32))
        for n in (20, 300, 40, 90, 60)
    ]


@pytest.mark.parametrize("distribution", ["uniform", "gaussian", "symmetric"])
@pytest.mark.parametrize("where", ["all", "prompt", "answer"])
def test_the_noise_of_each_sample_obeys_its_law(distribution, where):
    proofs = prove_noise(Neftune(distribution=distribution, where=where), samples(), 64, seed=0)
    assert [proof.holds for proof in proofs] == [True, True], proofs
    assert "4 samples of 20 to 300 tokens" in proofs[0].detail


def test_noise_that_is_scaled_by_the_pack_is_found(monkeypatch):
    enter = PackContext.enter

    def whole(self, *rest, **more):
        enter(self, *rest, **more)
        self.lengths = torch.full_like(self.lengths, len(self.lengths))

    monkeypatch.setattr(PackContext, "enter", whole)
    assert [proof.holds for proof in prove_noise(Neftune(), samples(), 64, seed=0)] == [False, False]


def test_noise_that_is_no_number_is_found(monkeypatch):
    monkeypatch.setattr(proof, "noise", lambda context, *rest: torch.full((len(context.lengths), 64), torch.nan))
    assert [one.holds for one in prove_noise(Neftune(), samples(), 64, seed=0)] == [False, False]


def test_noise_by_the_row_is_said_to_depend_on_the_pack():
    (one,) = prove_noise(Neftune(scale="row"), samples(), 64, seed=0)
    assert one.holds is None and "depends on the pack" in one.detail
