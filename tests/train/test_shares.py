"""Ranks that do not hold a step between them; tests/parity/test_mutants.py has the whole run that is refused."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import TrainingError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import StepShare, StepTotals, build_pack
from dist_sft.train.shares import _Holding, _wrong, compared


def share(step, positions, total):
    """One pack with the samples at these positions."""
    ids = [SampleId(position, 0, 100 + position) for position in positions]
    sample = EncodedSample(np.zeros(3, np.int32), np.array([0, 1, 1], np.float32))
    totals = StepTotals(total, 2.0 * total, 3 * total, 9 * total, 2 * total, (3 * total,), 1.0, 1.0, 0, 0)
    return StepShare(step, (build_pack(ids, [sample] * len(ids)),), totals)


def holding(*positions, step=0, total=4):
    return _Holding.of(share(step, positions, total), speaks=True)


def test_ranks_that_hold_a_sample_both_are_named_with_it():
    wrong = _wrong([holding(0, 1), holding(2), holding(3, 1)])
    assert wrong == "ranks 0 and 2 both hold 0:101 at position 1"


def test_a_rank_that_holds_a_sample_twice_is_named():
    assert _wrong([holding(0, 1), holding(2, 2)]) == "ranks 1 and 1 both hold 0:102 at position 2"


def test_samples_that_no_rank_holds_are_counted():
    assert _wrong([holding(0), holding(2)]).startswith(
        "the ranks hold 1 + 1 samples of a step of 4: 0:100 at position 0"
    )


def test_an_error_is_short_however_many_samples_there_are():
    wrong = _wrong([holding(*range(1000), total=1000)] * 2)
    assert len(wrong) < 250 and wrong.endswith("and 994 more")


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """A process group of this process alone, and a run of four samples a step."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    config = RunConfig(
        model={"path": "m"}, data={"sources": [{"path": "d"}]}, train={"samples_per_step": 4, "steps": 9}
    )
    yield _Run(config)
    dist.destroy_process_group()


class _Run:
    """What is looked at of a Training."""

    def __init__(self, config):
        self.config, self.engine = config, self
        self.device = torch.device("cpu")


def test_whole_steps_pass_and_dropped_rows_are_no_fault(one_rank):
    shares = [share(2, [], 0), share(3, [12, 15], 2), share(4, [16, 17, 18, 19], 4)]
    assert list(compared(shares, one_rank)) == shares


@pytest.mark.parametrize(
    "broken", [share(1, [4, 5], 3), share(1, [4, 4, 5], 3), share(1, [4, 5, 9], 3), share(1, [3, 4, 5], 3)]
)
def test_a_step_that_is_not_whole_is_refused_also_after_steps_without_a_sample(one_rank, broken):
    with pytest.raises(TrainingError, match="step 2: "):
        list(compared([share(0, [], 0), broken], one_rank))
