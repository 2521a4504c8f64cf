"""World size, ZeRO stage, packing and accumulation change nothing that is learned."""

import itertools

import pytest
import torch

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from tests.ranks import losses, records, train_on_ranks

STAGES, PACKING, MICRO_STEPS, WORLDS = (0, 2, 3), (True, False), (1, 4), (1, 2)
STEPS = 5
CASES = list(itertools.product(WORLDS, STAGES, PACKING, MICRO_STEPS))
REFERENCE = (1, 0, False, 1)


def settings(base, folder, world, stage, packing, micro_steps):
    """A run with NEFTune and dropout on, weights that differ, and samples of many lengths."""
    name = f"w{world}-z{stage}-{'packed' if packing else 'single'}-m{micro_steps}"
    train = {
        "packing": packing,
        "micro_steps": micro_steps,
        "steps": STEPS,
        "optimizer": {"name": "adamw", "eps": 1e-2},
        "learning_rate": 0.02,
        "warmup": 0,
    }
    return base | {
        "run": {"name": name, "dir": str(folder / name), "seed": 3},
        "train": base["train"] | train,
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "cluster": {"workers": world, "gpus_per_worker": 0},
    }


@pytest.fixture(scope="module", params=["full", "lora"])
def runs(request, tiny_run, tmp_path_factory):
    """The folders of all runs, by case."""
    folder = tmp_path_factory.mktemp(request.param)
    tuning = {"kind": "full"} if request.param == "full" else {"kind": "lora", "rank": 4, "dropout": 0.2}
    base = tiny_run | {"model": tiny_run["model"] | {"tuning": tuning, "neftune": {"alpha": 5}}}
    cases = CASES if request.param == "full" else [c for c in CASES if c == REFERENCE or (c[1] == 3 and c[3] == 1)]
    for world in WORLDS:
        train_on_ranks([settings(base, folder, *case) for case in cases if case[0] == world], world)
    return {case: folder / settings(base, folder, *case)["run"]["name"] for case in cases}


@pytest.mark.xdist_group("parity")
def test_losses_are_the_same(runs):
    expected = losses(runs[REFERENCE])
    assert len(expected) == STEPS and expected[STEPS] < expected[1] - 0.5
    for case, folder in runs.items():
        assert losses(folder) == pytest.approx(expected, abs=1e-5), case


@pytest.mark.xdist_group("parity")
def test_gradient_norms_are_the_same(runs):
    expected = [record["grad_norm"] for record in records(runs[REFERENCE])]
    for case, folder in runs.items():
        assert [record["grad_norm"] for record in records(folder)] == pytest.approx(expected, rel=1e-4), case


@pytest.mark.xdist_group("parity")
def test_parameters_are_the_same(runs):
    expected = consolidated(newest(runs[REFERENCE]))
    trained = {name for name in expected if "lora_" in name} or set(expected)
    for case, folder in runs.items():
        weights = consolidated(newest(folder))
        for name in trained:
            torch.testing.assert_close(weights[name], expected[name].float(), atol=1e-5, rtol=0, msg=f"{case} {name}")


@pytest.mark.xdist_group("parity")
def test_the_runs_were_executed_differently(runs):
    """Else the comparisons above would compare a run with itself."""
    micro_steps = {case: {r["micro_steps"] for r in records(folder)} for case, folder in runs.items()}
    assert micro_steps[1, 3, True, 1] == {1}
    assert micro_steps[1, 0, False, 1] == {12}
    assert micro_steps[2, 3, False, 1] == {6}
    assert micro_steps.get((2, 3, True, 4), {4}) == {4}
