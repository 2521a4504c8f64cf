"""A run that was stopped goes on as if nothing had happened; a checkpoint that cannot be trusted is not used."""

import contextlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import Manifest, newest, whole_steps
from dist_sft.core.errors import CheckpointError
from tests.ranks import losses, records, train_on_ranks

STEPS, WORLD = 6, 2


def settings(tiny_run, folder, steps=STEPS, **more):
    """Everything on that could leave a trace outside the step number: noise, dropout, Adam, early stopping, drops."""
    return tiny_run | {
        "run": {"name": "resume", "dir": str(folder), "seed": 1},
        "model": tiny_run["model"] | {"neftune": {"alpha": 5}},
        "data": tiny_run["data"] | {"context_length": 110},
        "train": tiny_run["train"] | {"steps": steps, "learning_rate": 0.01},
        "eval": {"source": tiny_run["data"]["sources"][0], "every": 2, "patience": 50, "samples": 8},
        "checkpoint": {"every": 1, "keep": 99},
        "cluster": {"workers": WORLD, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
        **more,
    }


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """A run that nobody stopped, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_on_ranks([settings(tiny_run, folder)], WORLD)
    return folder


def stopped_after(whole, folder, step):
    """A run folder as it stood when the run was killed at some time after the checkpoint of `step`."""
    shutil.copytree(whole, folder)
    for later in whole_steps(folder / "checkpoints"):
        if later > step:
            shutil.rmtree(folder / "checkpoints" / f"step_{later:08d}")
    return folder


@pytest.mark.xdist_group("resume")
def test_after_a_stop_at_any_step_the_rest_is_bit_for_bit_the_same(tiny_run, whole, tmp_path):
    folders = [stopped_after(whole, tmp_path / str(step), step) for step in range(1, STEPS)]
    (folders[0] / "checkpoints" / "step_00000002" / "7-dead").mkdir(parents=True)
    train_on_ranks([settings(tiny_run, folder) for folder in folders], WORLD)
    expected = consolidated(newest(whole))
    for folder in folders:
        assert losses(folder) == losses(whole)
        assert [r["loss"] for r in records(folder, "eval")] == [r["loss"] for r in records(whole, "eval")]
        assert (folder / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()
        weights = consolidated(newest(folder))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        left = [path for path in (folder / "checkpoints").glob("*/*") if path.is_dir()]
        assert len(left) == STEPS, "what was left half-written is gone"
    assert json.loads((whole / "ledger.jsonl").read_text().splitlines()[0])["reason"] == "overlong"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def shard(folder, rank=1):
    """The file of a rank."""
    return next(folder.glob(f"*/rank{rank:05d}.safetensors"))


def give(folder, other):
    """Replace a manifest by that of another checkpoint."""
    shutil.copy(other / "manifest.json", folder / "manifest.json")


def rewrite(folder, **changes):
    """Write a manifest anew, as though it had been so from the first."""
    replace(Manifest.read(folder), **changes).write(folder)


def rehash(folder, name):
    """As though a thing that the run learns by had been another."""
    rewrite(folder, run=Manifest.read(folder).run | {name: "0" * 64})


def change_digit(folder, key):
    """Flip a bit of the last digit of the first number behind a key of a manifest."""
    path = folder / "manifest.json"
    text = path.read_text()
    at = re.search(rf'"{key}": .*?(\d)[,\]}}]', text).start(1)
    path.write_text(text[:at] + str(int(text[at]) ^ 1) + text[at + 1 :])


DAMAGE = {
    "a flipped bit": (lambda folder: flip(shard(folder)), "does not have the content that was saved"),
    "a truncated shard": (lambda folder: cut(shard(folder, 0)), "bytes instead of"),
    "a missing shard": (lambda folder: shard(folder).unlink(), "is missing"),
    "a missing manifest": (lambda folder: (folder / "manifest.json").unlink(), None),
    "a torn manifest": (lambda folder: cut(folder / "manifest.json"), "the manifest cannot be read"),
    "a digit of the state": (lambda folder: change_digit(folder, "waited"), "the content that was saved"),
    "a digit of the pieces": (lambda folder: change_digit(folder, "pieces"), "the content that was saved"),
    "a digit of the format": (lambda folder: change_digit(folder, "format"), "the content that was saved"),
    "another step's manifest": (
        lambda folder: give(folder, folder.with_name("step_00000002")),
        "does not have the content that was saved",
    ),
    "another run's manifest": (lambda folder: rewrite(folder, run={}), "not the same: config, sources, encoder, model"),
    "another config's manifest": (lambda folder: rehash(folder, "config"), "another run; not the same: config"),
    "another data set's manifest": (lambda folder: rehash(folder, "sources"), "another run; not the same: sources"),
    "a manifest of another step": (lambda folder: rewrite(folder, step=9), "its manifest is that of step 9"),
}


@pytest.mark.xdist_group("resume")
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_used(tiny_run, whole, tmp_path):
    folders = {}
    for damage, (do, _) in DAMAGE.items():
        folders[damage] = stopped_after(whole, tmp_path / damage.replace(" ", "_"), 4)
        do(folders[damage] / "checkpoints" / "step_00000004")
    train_on_ranks([settings(tiny_run, folder) for folder in folders.values()], WORLD)
    for damage, folder in folders.items():
        starts = [r["step"] for r in records(folder, "note") if r["text"] == "start"]
        assert starts[-1] == 3, damage
        assert losses(folder) == losses(whole), damage
        reason, aside = DAMAGE[damage][1], folder / "checkpoints" / "step_00000004.bad" / "reason.txt"
        assert reason in aside.read_text() if reason else not aside.exists(), damage
        said = [r["text"] for r in records(folder, "note")]
        assert reason is None or any("step_00000004" in text and reason in text for text in said), damage


@pytest.mark.xdist_group("resume")
def test_what_cannot_be_resumed_is_refused_with_the_reason(tiny_run, whole, tmp_path):
    base = settings(tiny_run, tmp_path / "run")
    stopped_after(whole, tmp_path / "run", 3)
    other_rows = tmp_path / "other.jsonl"
    other_rows.write_text(Path(base["data"]["sources"][0]["path"]).read_text() + "\n")
    changes = {
        "train.learning_rate was 0.01, is 0.02": base | {"train": base["train"] | {"learning_rate": 0.02}},
        "run.seed was 1, is 2": base | {"run": base["run"] | {"seed": 2}},
        "data.context_length was 110, is 120": base | {"data": base["data"] | {"context_length": 120}},
    }
    errors = train_on_ranks(list(changes.values()), WORLD, check=False)
    for expected, error in zip(changes, errors, strict=True):
        assert expected in error and "fix:" in error
    assert whole_steps(tmp_path / "run" / "checkpoints") == [1, 2, 3]


@pytest.mark.xdist_group("resume")
def test_a_checkpoint_of_other_shapes_is_refused(tiny_run, whole, tmp_path):
    run = stopped_after(whole, tmp_path / "run", 3)
    checkpoint = run / "checkpoints/step_00000003"
    rewrite(checkpoint, parameters=Manifest.read(checkpoint).parameters | {"lm_head.weight": [7, 7]})
    (error,) = train_on_ranks([settings(tiny_run, run)], WORLD, check=False)
    assert "lm_head.weight is [" in error and "[7, 7] in it" in error


@pytest.mark.xdist_group("resume")
def test_a_changed_file_of_rows_is_refused(tiny_run, whole, tmp_path):
    run = stopped_after(whole, tmp_path / "run", 3)
    rows = tmp_path / "rows.jsonl"
    original = Path(tiny_run["data"]["sources"][0]["path"]).read_text()
    rows.write_text(original.replace("What", "Which", 1))
    changed = settings(tiny_run, run, data={"sources": [{"path": str(rows)}], "context_length": 110})
    (error,) = train_on_ranks([changed], WORLD, check=False)
    assert "would learn something else" in error and "fingerprints.sources.0" in error


@pytest.mark.xdist_group("resume")
def test_the_same_rows_at_another_place_are_the_same_rows(tiny_run, whole, tmp_path):
    run = stopped_after(whole, tmp_path / "run", 5)
    rows = tmp_path / "moved.jsonl"
    shutil.copy(tiny_run["data"]["sources"][0]["path"], rows)
    moved = settings(tiny_run, run, data={"sources": [{"path": str(rows)}], "context_length": 110})
    train_on_ranks([moved | {"eval": moved["eval"] | {"source": {"path": str(rows)}}}], WORLD)
    assert losses(run) == losses(whole)


@pytest.mark.xdist_group("resume")
def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again_from_nothing(tiny_run, whole, tmp_path):
    run = stopped_after(whole, tmp_path / "run", 1)
    flip(shard(run / "checkpoints/step_00000001"))
    before = (run / "metrics.jsonl").read_bytes()
    (error,) = train_on_ranks([settings(tiny_run, run)], WORLD, check=False)
    assert "none of the 1 checkpoints" in error and "does not have the content that was saved" in error
    assert (run / "metrics.jsonl").read_bytes() == before


@contextlib.contextmanager
def mounted(folder):
    """A file system of 24 MiB."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk") as folder:
        yield folder


@pytest.mark.xdist_group("resume")
def test_a_full_disk_ends_the_run_and_leaves_the_last_whole_checkpoint(tiny_run, whole, small_disk):
    shutil.copytree(whole / "checkpoints" / "step_00000001", small_disk / "run/checkpoints/step_00000001")
    for name in ("run.json", "ledger.jsonl"):
        shutil.copy(whole / name, small_disk / "run" / name)
    (error,) = train_on_ranks([settings(tiny_run, small_disk / "run")], WORLD, check=False)
    assert error.startswith("CheckpointError") and "cannot be written" in error
    assert "No space left on device" in error or "MiB free" in error
    assert "make room" in error
    steps = whole_steps(small_disk / "run" / "checkpoints")
    assert steps and sorted(p.name for p in (small_disk / "run" / "checkpoints").glob("step_*")) == [
        f"step_{step:08d}" for step in steps
    ]
    assert consolidated(newest(small_disk / "run"))


@pytest.mark.xdist_group("resume")
def test_a_checkpoint_that_cannot_be_removed_does_not_end_the_run_and_goes_at_a_later_save(tiny_run, whole, tmp_path):
    checkpoints = stopped_after(whole, tmp_path / "run", STEPS - 2) / "checkpoints"
    run = settings(tiny_run, tmp_path / "run", checkpoint={"every": 1, "keep": STEPS - 2})
    with mounted(checkpoints / "step_00000001" / "in_the_way"):
        train_on_ranks([run], WORLD)
        assert (checkpoints / "step_00000001").exists() and not (checkpoints / "step_00000002").exists()
    assert whole_steps(checkpoints) == [3, 4, 5, 6] and losses(tmp_path / "run") == losses(whole)
    said = [(r["step"], r["text"]) for r in records(tmp_path / "run", "note") if "cannot be removed" in r["text"]]
    assert [step for step, _ in said] == [5, 6] and all("step_00000001" in text and "busy" in text for _, text in said)

    shutil.rmtree(checkpoints / "step_00000006")
    train_on_ranks([run], WORLD)
    assert not (checkpoints / "step_00000001").exists() and whole_steps(checkpoints) == [3, 4, 5, 6]


@pytest.mark.xdist_group("resume")
def test_only_the_newest_checkpoints_are_kept(tiny_run, tmp_path):
    run = settings(tiny_run, tmp_path / "run", steps=4, checkpoint={"every": 1, "keep": 2},
                   cluster={"workers": 1, "gpus_per_worker": 0})  # fmt: skip
    train_on_ranks([run], 1)
    assert whole_steps(tmp_path / "run" / "checkpoints") == [3, 4]
    assert Manifest.read(newest(tmp_path / "run")).step == 4


def test_a_run_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="this run has no checkpoint"):
        newest(tmp_path)
