"""A run learns what the loop by hand learns, however it is executed."""

import itertools
import shutil

import pytest

from dist_sft.checkpoint.layout import Manifest, newest
from tests.parity.by_hand import CLIP
from tests.parity.cases import AXES, EVERY, ROWS, SAMPLES_PER_STEP, Case, covering
from tests.parity.conftest import SILENT
from tests.parity.deviation import ALLOWED, deviations, found, right
from tests.ranks import records, train_on_ranks

pytestmark = [pytest.mark.xdist_group("parity"), pytest.mark.timeout(1800)]  # the first test waits for all runs


@pytest.fixture(scope="module")
def off(executed, expected):
    """How far each case is from the loop by hand."""
    return {case: deviations(found(folder), expected(case)) for case, folder in executed[0].items()}


@pytest.mark.parametrize("quantity", ALLOWED)
def test_what_is_learned_is_that_of_the_loop_by_hand(off, quantity):
    print(f"farthest: {max(of[quantity] for of in off.values()):.2g} of what is allowed")
    assert not {case: of[quantity] for case, of in off.items() if not of[quantity] <= 1}


@pytest.mark.parametrize(("tuning", "optimizer"), [*itertools.product(AXES["tuning"], AXES["optimizer"])])
def test_the_loop_by_hand_learns_something_and_clips_some_gradients_only(expected, tuning, optimizer):
    losses, norms, _ = expected(Case(tuning=tuning, optimizer=optimizer))
    assert min(losses) < losses[0] - 0.3
    assert min(norms) < CLIP[tuning] < max(norms)


def test_the_cases_were_executed_differently(executed):
    """Else the comparison above would be that of one execution, many times."""
    for case, folder in executed[0].items():
        steps, manifest = records(folder), Manifest.read(newest(folder))
        assert (manifest.world, manifest.zero_stage) == (case.ranks, case.stage)
        sizes = [min(SAMPLES_PER_STEP, ROWS - begin) for begin in range(0, ROWS, SAMPLES_PER_STEP)]
        assert [step["micro_steps"] for step in steps] == list(map(case.micro_steps, sizes)), case


def test_in_some_step_some_rank_has_no_sample_and_in_another_nothing_that_counts(executed):
    idle = {case: records(folder)[-1]["dummies"] for case, folder in executed[0].items()}
    assert all(count >= case.ranks - 2 for case, count in idle.items())
    assert {case.ranks for case, count in idle.items() if count} == {2, 3}
    assert len(SILENT) == SAMPLES_PER_STEP - 1
    (supervised,) = {records(folder)[2]["supervised"] for folder in executed[0].values()}
    assert 0 < supervised < min(records(folder)[1]["supervised"] for folder in executed[0].values()) / 4


def test_any_two_choices_meet_in_some_case():
    cases = covering(EVERY)
    for one, two in itertools.combinations(AXES, 2):
        possible, met = ({(getattr(case, one), getattr(case, two)) for case in some} for some in (EVERY, cases))
        assert met == possible
    everywhere = {(case.ranks, case.stage, case.offload) for case in EVERY}
    assert {(case.ranks, case.stage, case.offload) for case in cases} == everywhere and len(everywhere) == 24
    assert len(cases) <= 1.5 * len(everywhere)


def test_offloaded_adamw_is_among_the_cases(cases):
    if not any(case.compiled for case in cases):
        pytest.skip("DeepSpeedCPUAdam takes minutes to compile, and was never built here; --soak builds it")


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("ranks", AXES["ranks"])
def test_each_of_all_combinations_learns_that_too(ranks, plain, expected, tmp_path):
    cases = [case for case in EVERY if case.ranks == ranks]
    for begin in range(0, len(cases), 32):
        folders = {case: tmp_path / f"run{i}" for i, case in enumerate(cases[begin : begin + 32])}
        train_on_ranks([plain(case, folder) for case, folder in folders.items()], ranks, timeout=3600)
        off = {case: deviations(found(folder), expected(case)) for case, folder in folders.items()}
        assert not {case: of for case, of in off.items() if not right(of)}
        for folder in folders.values():
            shutil.rmtree(folder)
