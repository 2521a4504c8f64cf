"""A run goes on with any number of ranks and any ZeRO stage as if it had always had them, optimizer and all."""

import itertools

import pytest
import torch

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import Manifest, newest
from tests.checkpoint.test_resume import stopped_after
from tests.ranks import losses, train_on_ranks

STEPS = 5
LIMIT = 1e-5
"""Relative, of losses and (to the largest) of weights; eps keeps AdamW from amplifying rounding."""
ADAMW, SGD = {"name": "adamw", "eps": 1e-2, "weight_decay": 0.1}, {"name": "sgd", "momentum": 0.9}
FULL, LORA = {"kind": "full"}, {"kind": "lora", "rank": 4}
WHOLE_HEAD = LORA | {"init": "pissa", "modules_to_save": ["lm_head"]}
ZERO = {stage: {"stage": stage} for stage in range(4)} | {"host": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}

RUNS = {  # name: (tuning, optimizer, ZeRO of 2 ranks, then of 1, of 3, of 2 again)
    "full, other stages": (FULL, ADAMW, (3, 0, 2, 1)),
    "full, momentum on the host": (FULL, SGD, ("host", 1, 3, "host")),
    "adapter and whole head": (WHOLE_HEAD, ADAMW, (2, 3, 1, 3)),
}
MORE_RUNS = {
    "full, momentum": (FULL, SGD, (0, 1, 3, 0)),
    "full, AdamW on the host": (FULL, ADAMW, ("host", 2, 3, "host")),  # DeepSpeedCPUAdam takes minutes to compile
    "full, always sharded": (FULL, ADAMW, (3, 3, 3, 3)),
    "adapter": (LORA | {"dropout": 0.1}, ADAMW, (3, 2, 3, 0)),
}
WORLDS = (2, 1, 3, 2)
STOPS = (2, 3, 4, STEPS)


def settings(tiny_run, folder, name, leg):
    tuning, optimizer, stages = (RUNS | MORE_RUNS)[name]
    return tiny_run | {
        "run": {"name": "reshape", "dir": str(folder), "seed": 1},
        "model": tiny_run["model"] | {"tuning": tuning, "neftune": {"alpha": 5}},
        "train": tiny_run["train"] | {"steps": STEPS, "learning_rate": 0.01, "optimizer": optimizer},
        "checkpoint": {"every": 1, "keep": 99},
        "cluster": {"workers": WORLDS[leg], "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": ZERO[stages[leg]]},
    }


@pytest.fixture(scope="module", params=[RUNS, pytest.param(MORE_RUNS, marks=pytest.mark.soak)], ids=["runs", "more"])
def legs(request, tiny_run, tmp_path_factory):
    """Folders of each run by leg: the first goes to the end, each other leaves the one before it at its stop."""
    place, done = tmp_path_factory.mktemp("reshape"), []
    for leg, world in enumerate(WORLDS):
        folders = {name: place / f"{leg}-{i}" for i, name in enumerate(request.param)}
        if leg:
            for name, folder in folders.items():
                stopped_after(done[-1][name], folder, STOPS[leg - 1])
        train_on_ranks([settings(tiny_run, folders[name], name, leg) for name in folders], world)
        done.append(folders)
    return done


@pytest.mark.xdist_group("reshape")
def test_two_ranks_then_one_then_three_then_two_learn_what_two_would(legs):
    for name, first in legs[0].items():
        last = legs[-1][name]
        assert losses(last) == pytest.approx(losses(first), rel=LIMIT), name
        found, expected = consolidated(newest(last)), consolidated(newest(first))
        assert set(found) == set(expected)
        for parameter, weight in expected.items():
            assert (found[parameter] - weight).abs().max() <= LIMIT * weight.abs().max().clamp(min=1), (name, parameter)
        worlds = [Manifest.read(newest(last, step)).world for step in range(1, STEPS + 1)]
        assert worlds == [2, 2, 1, 3, 2]


@pytest.mark.xdist_group("reshape")
def test_a_leg_goes_on_from_where_the_other_stopped(legs):
    """Nothing but the sums of other ranks differs: weights that were loaded are those that were saved, bit for bit."""
    for leg, name in itertools.product(range(1, len(WORLDS)), legs[0]):
        before, after = (consolidated(newest(legs[i][name], STOPS[leg - 1])) for i in (leg - 1, leg))
        assert all(torch.equal(before[parameter], after[parameter]) for parameter in before), name
        assert losses(legs[leg][name])[STOPS[leg - 1]] == losses(legs[leg - 1][name])[STOPS[leg - 1]]
