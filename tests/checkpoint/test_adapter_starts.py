"""A run with an adapter goes on exactly, from the start that it once had and not from one computed anew."""

import pytest
import torch

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from dist_sft.checkpoint.starts import starts_in
from tests.checkpoint.test_resume import stopped_after
from tests.ranks import losses, records, train_on_ranks

STEPS, WORLD = 4, 2
KINDS = {
    "pissa": {"init": "pissa"},
    "dora": {"dora": True, "dropout": 0.1},
    "rslora+": {"scaling": "rslora", "b_rate_ratio": 16},
    "whole": {"modules_to_save": ["lm_head", "embed_tokens"]},
}


def settings(tiny_run, folder, kind, **more):
    return tiny_run | {
        "run": {"name": kind, "dir": str(folder), "seed": 1},
        "model": tiny_run["model"] | {"tuning": {"kind": "lora", "rank": 4, **KINDS[kind]}},
        "train": tiny_run["train"] | {"steps": STEPS, "learning_rate": 0.005},
        "checkpoint": {"every": 1, "keep": 99},
        "cluster": {"workers": WORLD, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
        **more,
    }


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """Runs that nobody stopped, by kind, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("whole")
    train_on_ranks([settings(tiny_run, folder / kind, kind) for kind in KINDS], WORLD)
    return folder


def starts_file(folder, step):
    return next((folder / f"checkpoints/step_{step:08d}").glob("*/adapter_starts.safetensors"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.xdist_group("adapter-starts")
def test_the_rest_is_bit_for_bit_the_same_and_no_weight_is_decomposed_again(tiny_run, whole, tmp_path):
    folders = {kind: stopped_after(whole / kind, tmp_path / kind, 2) for kind in KINDS}
    train_on_ranks([settings(tiny_run, folder, kind, decomposes=False) for kind, folder in folders.items()], WORLD)
    for kind, folder in folders.items():
        assert losses(folder) == losses(whole / kind)
        assert [r["step"] for r in records(folder, "note") if r["text"] == "start"] == [0, 2]
        weights, expected = consolidated(newest(folder)), consolidated(newest(whole / kind))
        assert weights and all(torch.equal(weights[name], expected[name]) for name in expected)
        starts, before = starts_in(newest(folder)), starts_in(newest(whole / kind))
        assert (starts is None) == (before is None) == (kind != "pissa")
        assert not starts or all(torch.equal(starts[name], before[name]) for name in before)


@pytest.mark.xdist_group("adapter-starts")
def test_the_start_is_taken_from_an_older_checkpoint_or_the_run_is_refused(tiny_run, whole, tmp_path):
    older, none = (stopped_after(whole / "pissa", tmp_path / name, 2) for name in ("older", "none"))
    flip(starts_file(older, 2))
    starts_file(none, 1).unlink()
    flip(starts_file(none, 2))
    runs = [settings(tiny_run, folder, "pissa", decomposes=False) for folder in (older, none)]
    fine, error = train_on_ranks(runs, WORLD, check=False)
    assert fine is None and losses(older) == losses(whole / "pissa")
    assert (older / "checkpoints/step_00000002.bad").is_dir()
    assert error.startswith("CheckpointError") and "no checkpoint tells what the adapter started from" in error


@pytest.mark.xdist_group("adapter-starts")
def test_another_kind_of_adapter_is_another_run(tiny_run, whole, tmp_path):
    folder = stopped_after(whole / "pissa", tmp_path / "run", 2)
    changed = settings(tiny_run, folder, "dora")
    (error,) = train_on_ranks([changed], WORLD, check=False)
    assert "model.tuning.init was 'pissa', is 'default'; model.tuning.dora was false, is true" in error
