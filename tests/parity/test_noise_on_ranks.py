"""A sample has the same noise and dropout on one rank and on two, in any pack, recomputed, and after a resume."""

import json
import shutil

import pytest
import torch

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from tests.ranks import losses, train_on_ranks

STEPS, STOPPED = 5, 2
TUNING = {
    "full": {
        "neftune": {
            "layers": {"0": 5, "1": 3},
            "distribution": "symmetric",
            "where": "answer",
            "schedule": {"shape": "cosine", "warmup": 2, "end": 0.2},
        },
        "residual_dropout": 0.3,
    },
    "lora": {
        "tuning": {"kind": "lora", "rank": 4, "dropout": 0.2},
        "neftune": {"layers": {"shape": "linear", "first": 5, "last": 1}, "distribution": "gaussian"},
        "residual_dropout": 0.2,
        "attention_dropout": 0.1,
    },
}
OFF = {
    "silent": {"neftune": None, "residual_dropout": 0},
    "dropping": {"neftune": None},
}
"""Runs as "plain" is, but without noise."""

CASES = {
    "plain": (1, {"packing": False}, 0, False),
    "sharded": (2, {"pad_to_multiple_of": 64}, 3, True),
}


def settings(tiny_run, folder, tuning, case):
    _, execution, stage, recompute = CASES[case]
    train = {"steps": STEPS, "optimizer": {"eps": 1e-2}, "learning_rate": 0.02, "warmup": 0, **execution}
    sharded = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return tiny_run | {
        "run": {"name": "noise", "dir": str(folder), "seed": 3},
        "model": tiny_run["model"] | TUNING[tuning] | {"gradient_checkpointing": recompute},
        "data": tiny_run["data"] | {"context_length": 512},  # no row is too long
        "train": tiny_run["train"] | train,
        "checkpoint": {"every": 1, "keep": 99},
        "deepspeed": {"zero_optimization": {"stage": stage, **sharded}},
        "cluster": {"workers": CASES[case][0], "gpus_per_worker": 0},
        "record": str(folder.parent / f"{folder.name}-noise"),
    }


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """The folders of all runs, by tuning and case."""
    root = tmp_path_factory.mktemp("noise")
    folders = {(tuning, case): root / f"{tuning}-{case}" for tuning in TUNING for case in CASES}
    off = []
    for name, changes in OFF.items():
        folders["full", name] = root / name
        run = settings(tiny_run, root / name, "full", "plain")
        off.append(run | {"model": run["model"] | changes})
    for case, (world, *_) in CASES.items():
        noisy = [settings(tiny_run, folders[tuning, case], tuning, case) for tuning in TUNING]
        train_on_ranks(noisy + (off if case == "plain" else []), world)
    return folders


def drawn(folder):
    """Digest of the noise by block, step and sample, of all ranks together."""
    ranks = [json.loads(path.read_text()) for path in folder.parent.glob(f"{folder.name}-noise/*.json")]
    assert ranks and all(ranks)
    together = {}
    for rank in ranks:
        assert not together.keys() & rank.keys()
        together |= rank
    return together


@pytest.mark.xdist_group("noise")
@pytest.mark.parametrize("tuning", TUNING)
def test_every_bit_of_the_noise_is_the_same_on_one_rank_and_on_two(runs, tuning):
    plain, sharded = drawn(runs[tuning, "plain"]), drawn(runs[tuning, "sharded"])
    assert {name.split()[1] for name in plain} == {"0", "1"}
    assert len(plain) == 2 * STEPS * 12 and all(f" of {STEPS} " in name for name in plain)
    assert plain == sharded


@pytest.mark.xdist_group("noise")
@pytest.mark.parametrize("tuning", TUNING)
def test_losses_and_parameters_are_the_same_with_noise_in_blocks_and_residual_dropout(runs, tuning):
    expected = losses(runs[tuning, "plain"])
    assert len(expected) == STEPS
    assert losses(runs[tuning, "sharded"]) == pytest.approx(expected, abs=1e-5)
    weights, found = (consolidated(newest(runs[tuning, case])) for case in CASES)
    for name, value in weights.items():
        if tuning == "full" or "lora_" in name:
            torch.testing.assert_close(found[name], value.float(), atol=1e-5, rtol=0, msg=name)


@pytest.mark.xdist_group("noise")
@pytest.mark.parametrize("tuning", TUNING)
def test_a_resumed_run_draws_the_bits_that_were_left(tiny_run, runs, tmp_path, tuning):
    """And nothing else differs, to the last bit of the losses: dropout in adapters and attention neither."""
    whole = runs[tuning, "sharded"]
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for later in range(STOPPED + 1, STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"step_{later:08d}")
    train_on_ranks([settings(tiny_run, run, tuning, "sharded")], 2)
    assert losses(run) == losses(whole)
    left = {name: bits for name, bits in drawn(whole).items() if int(name.split()[3]) >= STOPPED}
    assert drawn(run) == left and len(left) < len(drawn(whole))


@pytest.mark.xdist_group("noise")
def test_noise_and_dropout_did_change_what_was_learned(runs):
    """Else the comparisons above would hold without them."""
    silent, dropping, both = (losses(runs["full", name])[1] for name in ("silent", "dropping", "plain"))
    assert abs(silent - dropping) > 1e-3 < abs(dropping - both)
