"""Each file of a run folder, damaged in each way: the run goes on with the same losses, or one error has a fix."""

import os
import shutil

import pytest

from dist_sft.checkpoint.layout import folder_of
from dist_sft.commands.export import export
from dist_sft.core.errors import SftError
from tests.ranks import losses, train_on_ranks

STEPS = 4
NEWEST = "checkpoints/step_00000003"
FILES = (
    "metrics.jsonl", "ledger.jsonl", "session", "run.json", "run.yaml", "resolved.yaml", ".dist-sft", "tokenizer",
    "tokenizer/tokenizer.json", "checkpoints", "checkpoints/writer", "checkpoints/.dist-sft", NEWEST,
    f"{NEWEST}/manifest.json", f"{NEWEST}/1-test", f"{NEWEST}/1-test/rank00000.json",
    f"{NEWEST}/1-test/rank00000.safetensors",
)  # fmt: skip


def rewritten(change):
    """Change what a file holds; of a folder, what each file in it holds."""

    def damage(path):
        for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
            file.write_bytes(change(file.read_bytes()))

    return damage


def gone(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def replaced(make):
    def damage(path):
        gone(path)
        make(path)

    return damage


def aged(path):
    for each in (path, *path.rglob("*")):
        os.utime(each, (0, 0))


def folder_with_a_file(path):
    path.mkdir()
    (path / "mine.txt").write_text("mine")


DAMAGES = {
    "missing": gone,
    "emptied": rewritten(lambda data: b""),
    "zeros": rewritten(lambda data: b"\0" * len(data)),
    "cut off": rewritten(lambda data: data[: len(data) // 2]),
    "zeros at its end": rewritten(lambda data: data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2)),
    "longer": rewritten(lambda data: data + b"\0" * 4096),
    "a list": rewritten(lambda data: b"[]\n"),
    "a number": rewritten(lambda data: b"5\n"),
    "no text": rewritten(lambda data: b"\xff\xfe\x80\n"),
    "a folder": replaced(folder_with_a_file),
    "a file": replaced(lambda path: path.write_text("mine")),
    "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
    "a link to nothing": replaced(lambda path: path.symlink_to("gone")),
    "of 1970": aged,
}
ALL = [(name, damage) for name in FILES for damage in DAMAGES]


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """A run of four steps, with a checkpoint of each; gives its settings."""
    folder = tmp_path_factory.mktemp("damages") / "whole"
    settings = tiny_run | {
        "run": {"name": "damages", "dir": str(folder), "seed": 5},
        "data": tiny_run["data"] | {"overlong": "drop", "context_length": 80},
        "train": tiny_run["train"] | {"steps": STEPS, "samples_per_step": 4},
        "checkpoint": {"every": 1, "keep": 9},
    }
    train_on_ranks([settings], 1)
    return settings, folder


def damaged(whole, folder, name, damage):
    """A copy of the run without its last checkpoint, damaged; its settings."""
    settings, kept = whole
    shutil.copytree(kept, folder, symlinks=True)
    shutil.rmtree(folder_of(folder / "checkpoints", STEPS))
    (folder / "run.yaml").write_text("run: {}\n")
    DAMAGES[damage](folder / name)
    return settings | {"run": settings["run"] | {"dir": str(folder)}}


def as_whole(found, right, name):
    """Whether the losses are the right ones; those that a damaged metrics.jsonl held may be missing."""
    lost = {step for step in right if step not in found}
    return found == {step: loss for step, loss in right.items() if step in found} and (
        not lost or (name == "metrics.jsonl" and STEPS not in lost)
    )


@pytest.mark.xdist_group("damages")
@pytest.mark.parametrize("cases", [ALL[::7], pytest.param(ALL, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_a_damaged_folder_goes_on_or_says_what_to_do(whole, tmp_path, cases):
    runs = [damaged(whole, tmp_path / str(i), *case) for i, case in enumerate(cases)]
    ended = train_on_ranks(runs, 1, timeout=30 * len(runs), check=False)
    wrong, stopped = [], []
    for (name, damage), run, error in zip(cases, runs, ended, strict=True):
        if error is None:
            wrong += [] if as_whole(losses(run["run"]["dir"]), losses(whole[1]), name) else [(name, damage, "losses")]
        else:
            stopped.append((name, damage))
            wrong += [] if "\n  fix: " in error and "Traceback" not in error else [(name, damage, error)]
    assert not wrong
    assert len(stopped) < len(cases) / 3


@pytest.mark.xdist_group("damages")
@pytest.mark.parametrize(
    "damage",
    [damage if i % 3 == 0 else pytest.param(damage, marks=pytest.mark.soak) for i, damage in enumerate(DAMAGES)],
)
def test_an_export_of_a_damaged_folder_is_whole_or_says_what_to_do(whole, tmp_path, damage):
    for i, name in enumerate(name for name in FILES if name not in ("metrics.jsonl", "ledger.jsonl", "session")):
        run, out = tmp_path / f"run{i}", tmp_path / f"out{i}"
        damaged(whole, run, name, damage)
        try:
            assert (export(run, out) / "model.safetensors").stat().st_size > 1000
        except SftError as error:
            assert error.fix and error.where, (name, error)
            assert not out.exists()
