"""World size, ZeRO stage, packing and accumulation change nothing that is learned."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from tests.ranks import losses, records, train_on_ranks

STEPS = 5


@dataclass(frozen=True)
class Case:
    """One way to execute the same run."""

    world: int
    stage: int
    packing: bool
    micro_steps: int = 1
    recompute: bool = False

    def settings(self, base, folder):
        """With NEFTune and dropout on, weights that differ, and samples of many lengths."""
        train = {
            "packing": self.packing,
            "micro_steps": self.micro_steps,
            "steps": STEPS,
            "optimizer": {"name": "adamw", "eps": 1e-2, "weight_decay": 0.1},
            "learning_rate": 0.02,
            "warmup": 0,
        }
        sharded = {"stage3_param_persistence_threshold": 0} if self.stage == 3 else {}
        return base | {
            "run": {"name": "parity", "dir": str(self.folder(folder)), "seed": 3},
            "model": base["model"] | {"gradient_checkpointing": self.recompute},
            "train": base["train"] | train,
            "deepspeed": {"zero_optimization": {"stage": self.stage, **sharded}},
            "cluster": {"workers": self.world, "gpus_per_worker": 0},
        }

    def folder(self, folder):
        return folder / repr(self).replace(" ", "")


REFERENCE = Case(1, 0, packing=False)
FULL = [
    *(Case(*case) for case in itertools.product((1, 2), (0, 2, 3), (True, False), (1, 4))),
    Case(1, 0, packing=True, recompute=True),
    Case(2, 3, packing=True, recompute=True),
    Case(3, 3, packing=True),
]
LORA = [REFERENCE, *(case for case in FULL if case.stage == 3 and case.micro_steps == 1)]
TUNING = {"full": ({"kind": "full"}, FULL), "lora": ({"kind": "lora", "rank": 4, "dropout": 0.2}, LORA)}


@pytest.fixture(scope="module", params=TUNING)
def runs(request, tiny_run, tmp_path_factory):
    """The folders of all runs, by case."""
    folder = tmp_path_factory.mktemp(request.param)
    tuning, cases = TUNING[request.param]
    base = tiny_run | {"model": tiny_run["model"] | {"tuning": tuning, "neftune": {"alpha": 5}}}
    for world in sorted({case.world for case in cases}):
        train_on_ranks([case.settings(base, folder) for case in cases if case.world == world], world)
    return {case: case.folder(folder) for case in cases}


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
    for case, folder in runs.items():
        most = max(record["micro_steps"] for record in records(folder))
        assert most == (case.micro_steps if case.packing else max(12 // case.world, case.micro_steps)), case
