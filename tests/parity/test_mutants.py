"""Trainers' old mistakes, made on purpose: the comparison with the loop by hand notices each, or the run is refused."""

import pytest

from tests import mutants
from tests.parity.cases import Case
from tests.parity.deviation import deviations, found, right
from tests.ranks import losses, records, train_on_ranks

pytestmark = [pytest.mark.xdist_group("parity"), pytest.mark.timeout(1800)]

CASE = Case(2, 2, (), "two")
LEARNING = [fault.__name__ for fault in mutants.UPDATES]
REFUSED = [fault.__name__ for fault in (*mutants.CLIENTS, *mutants.ENGINES)]


@pytest.fixture(scope="module")
def mutated(plain, tmp_path_factory):
    """Folder and error of a run with each fault, and of one without."""
    folder = tmp_path_factory.mktemp("mutants")
    names = [None, *(fault.__name__ for fault in mutants.HARMLESS), *LEARNING, *REFUSED]
    errors = train_on_ranks([plain(CASE, folder / str(name), mutant=name) for name in names], 2, 900, check=False)
    return {name: (folder / str(name), error) for name, error in zip(names, errors, strict=True)}


def off(mutated, expected, name):
    folder, error = mutated[name]
    assert error is None
    return deviations(found(folder), expected(CASE))


def test_without_a_fault_nothing_is_off(mutated, expected):
    assert right(off(mutated, expected, None))


@pytest.mark.parametrize("name", LEARNING)
def test_a_fault_is_noticed(mutated, expected, name):
    """By far: ten times what is allowed, in the losses and in the weights."""
    far = off(mutated, expected, name)
    print({quantity: f"{value:.0f}" for quantity, value in far.items()})
    assert far["losses"] > 10 and far["weights"] > 10, far


def test_deepspeed_that_is_told_of_one_micro_step_scales_nothing(mutated):
    """So `scale_wrt_gas=False` is a second lock: the first is what DeepSpeed is told, see config/deepspeed.py."""
    assert losses(mutated["scaled_by_deepspeed"][0]) == losses(mutated[None][0])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("same_rank", "ranks 0 and 1 both hold 0:"),
        ("alone", "ranks 0 and 1 both hold 0:"),
        ("one_rank_too_many", "the ranks hold "),
        ("one_step_ahead", "rank 0 computes 2 packs of step 1, which has 7 samples, and rank 1 2 packs of step 2"),
        ("other_stage", "DeepSpeed runs ZeRO stage 1, not 2"),
        ("engine_of_its_own", "DeepSpeed sees 1 ranks, not 2"),
    ],
)
def test_ranks_or_an_engine_that_are_not_what_was_asked_for_end_the_run(mutated, name, what):
    folder, error = mutated[name]
    assert error.startswith("TrainingError: ") and what in error
    assert not (folder / "metrics.jsonl").exists() or not records(folder)
