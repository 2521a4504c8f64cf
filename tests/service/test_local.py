"""The service hands out every step once, in order, whatever the rank and wherever it starts."""

import pytest

from dist_sft.cluster.run_data import RunData
from dist_sft.config.sections import RunConfig
from dist_sft.data.encoding import step_hash
from dist_sft.data.ledger import Ledger
from dist_sft.service.local import LocalStepService, evaluation_shares


@pytest.fixture(scope="module")
def run(tiny_run):
    train = {"samples_per_step": 7, "epochs": 2, "tokens_per_pack": 300}
    data = tiny_run["data"] | {"context_length": 999}
    config = RunConfig.model_validate(tiny_run | {"train": train, "data": data})
    return config, RunData.of(config)


def shares(run, world, rank, start=0):
    config, data = run
    service = LocalStepService(data.rows, data.steps, data.dealer(config, world), rank, Ledger())
    return list(service.shares(start))


@pytest.mark.parametrize("start", [0, 1, 5, 17])
def test_every_step_from_the_start_on_arrives_once_and_in_order(run, start):
    assert [share.step for share in shares(run, 1, 0, start)] == list(range(start, 18))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_the_packs_of_all_ranks_are_the_samples_of_the_step(run, world):
    ranks = [shares(run, world, rank) for rank in range(world)]
    for step, parts in enumerate(zip(*ranks, strict=True)):
        dealt = sorted(s.position for share in parts for pack in share.packs for s in pack.samples)
        assert dealt == [sample.position for sample in run[1].steps.samples(step)]
        assert len({(share.weight, share.tokens, share.supervised, len(share.packs)) for share in parts}) == 1
        assert sum(pack.weights.sum() for share in parts for pack in share.packs) == pytest.approx(parts[0].weight)
        assert sum(pack.real_tokens for share in parts for pack in share.packs) == parts[0].tokens


def test_a_resumed_service_teaches_what_the_first_one_would_have(run):
    assert [share.samples for share in shares(run, 2, 1, 9)] == [share.samples for share in shares(run, 2, 1)][9:]


def test_the_hash_of_a_step_changes_with_what_it_teaches(run):
    _, data = run
    first = data.rows.encode(0, data.steps.samples(0))
    assert step_hash(first) == step_hash(data.rows.encode(0, data.steps.samples(0)))
    assert step_hash(first) != step_hash(data.rows.encode(1, data.steps.samples(1)))
    first.samples[0].weights[-2] += 0.5
    assert step_hash(first) != step_hash(data.rows.encode(0, data.steps.samples(0)))


@pytest.mark.parametrize(("limit", "expected"), [(None, 60), (10, 10), (100, 60)])
def test_every_held_out_row_is_scored_once(run, limit, expected):
    config, data = run
    parts = [evaluation_shares(data.rows, data.dealer(config, 2), rank, 7, limit)[0] for rank in range(2)]
    rows = sorted(s.row for shares in parts for share in shares for pack in share.packs for s in pack.samples)
    assert len(rows) == len(set(rows)) == expected
