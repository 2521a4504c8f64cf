"""Noise and dropout are drawn for samples, not for executions: they change nothing between two ways to run."""

import pytest

from tests.parity.cases import NOISY
from tests.parity.deviation import deviations, found, right
from tests.ranks import losses

pytestmark = [pytest.mark.xdist_group("parity"), pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=NOISY)
def runs(request, executed):
    """What each case has learned: the first is what the others are compared with."""
    first, *others = NOISY[request.param]
    return found(executed[1][first]), {case: found(executed[1][case]) for case in others}


def test_noise_is_the_same_however_a_run_is_executed(runs):
    (losses, norms, weights), others = runs
    trained = {name: value for name, value in weights.items() if "lora_" in name} or weights
    off = {case: deviations(got, (losses, norms, trained)) for case, got in others.items()}
    assert not {case: of for case, of in off.items() if not right(of)}


def test_there_was_noise(executed):
    for cases in NOISY.values():
        quiet = next(folder for case, folder in executed[0].items() if case.tuning == cases[0].tuning)
        assert abs(losses(executed[1][cases[0]])[1] / losses(quiet)[1] - 1) > 1e-3
