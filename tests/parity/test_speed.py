"""What makes a run faster or smaller changes nothing that it learns: each key against the same run without any."""

import pytest

from tests.parity.cases import NOISY, Case, noise
from tests.parity.deviation import deviations, found, right
from tests.ranks import records, train_on_ranks

pytestmark = [pytest.mark.xdist_group("parity"), pytest.mark.timeout(1800)]

CASE = Case(2, 3, (), "three", tuning="full", optimizer="adamw")
NODES = {"zero_hpz_partition_size": 2, "overlap_comm": True, "contiguous_gradients": True}
KEYS = {
    "a part of the blocks recomputed": ({"gradient_checkpointing": 0.5}, {}),
    "hpZ and overlapped communication": ({}, NODES),
}
COMPILED = {
    "compiled blocks": ({"compile": True}, {}),
    "compiled and recomputed": ({"compile": True, "gradient_checkpointing": True}, {}),
}


def runs_of(keys, base, folder):
    runs = {}
    for number, (name, (model, zero)) in enumerate(keys.items()):
        one = CASE.settings(base, folder / str(number), **noise("full"), **model)
        one["model"] |= model
        one["deepspeed"]["zero_optimization"] |= zero
        runs[name] = one
    train_on_ranks(list(runs.values()), CASE.ranks, timeout=1500)
    return {name: found(folder / str(number)) for number, name in enumerate(keys)}


def test_faster_runs_learn_the_same(base, executed, tmp_path):
    expected = found(executed[1][NOISY["full"][0]])
    off = {name: deviations(got, expected) for name, got in runs_of(KEYS, base, tmp_path).items()}
    assert not {name: of for name, of in off.items() if not right(of)}
    assert len(records(tmp_path / "0")) == 5


@pytest.mark.soak  # torch.compile takes minutes here
def test_compiled_blocks_learn_the_same(base, executed, tmp_path):
    expected = found(executed[1][NOISY["full"][0]])
    off = {name: deviations(got, expected) for name, got in runs_of(COMPILED, base, tmp_path).items()}
    assert not {name: of for name, of in off.items() if not right(of)}
