"""No proof fails where nothing is wrong, on models whose weights are no noise. See tools/false_alarms.py."""

import pytest
import torch

from tools.false_alarms import KINDS, SMOLLM2, alarms, soak


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_trained_model_passes_every_proof_with_one_thread_and_with_two(tmp_path):
    """Gemma 3 has windows and soft caps, and norms on queries and keys."""
    found = soak(["gemma3"], 1, (1, 2), tmp_path, steps=60)
    assert not alarms(found), found
    assert len(found["gemma3"]) == 7 + 2 * 3 and all(len(pairs) >= 2 for pairs in found["gemma3"].values())


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [*KINDS, SMOLLM2])
def test_a_model_whose_weights_are_no_noise_passes_every_proof_with_ten_seeds(name, tmp_path):
    assert not alarms(soak([name], 10, (1, 2), tmp_path))
