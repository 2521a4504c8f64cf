"""The command in this process, and a run with a checkpoint that no mistake may touch."""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dist_sft import cli
from tests.command import without_work
from tests.ranks import train_on_ranks


@dataclass(frozen=True)
class Ended:
    """How a command ended. error: without what it told of work that is done once for a model."""

    code: int
    out: str
    error: str

    @property
    def values(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def sft(monkeypatch, capfd):
    """`dist-sft ARGUMENTS` without the five seconds that a new process takes to import transformers."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["dist-sft", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, error = capfd.readouterr()
        return Ended(code, out, without_work(error))

    return command


@pytest.fixture
def refused(sft):
    """The error of a command that must end with one: exit code 1, nothing but the message, no traceback."""

    def command(*arguments):
        ended = sft(*arguments)
        assert (ended.code, ended.out) == (1, ""), ended
        assert ended.error.startswith("error: ") and "Traceback" not in ended.error
        return ended.error.removeprefix("error: ").removesuffix("\n")

    return command


@dataclass(frozen=True)
class Run:
    """A run file, and what belongs to it: all in one folder, to be broken by a test."""

    file: Path
    model: Path
    rows: Path
    dir: Path


def content(folder):
    """Every file of a run by its path, as a digest; but for the facts, which each start of a run writes anew."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".dist-sft", "run.json", "run.yaml", "resolved.yaml")
    }


@pytest.fixture(scope="session")
def trained_once(tiny_run, tiny_model, tiny_rows, tmp_path_factory):
    """The files of a run of one step, with its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_model, folder / "model")
    shutil.copy(tiny_rows, folder / "rows.jsonl")
    settings = tiny_run | {
        "run": {"name": "user", "dir": str(folder / "run")},
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"sources": [{"path": str(folder / "rows.jsonl")}], "context_length": 1024},
        "train": {"samples_per_step": 13, "tokens_per_pack": 2048, "steps": 1},
        "cluster": {"workers": 1, "gpus_per_worker": 0, "cpus_per_worker": 0.5},
    }
    train_on_ranks([settings], 1)
    (folder / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return folder


@pytest.fixture
def run(trained_once):
    """A run with a whole checkpoint. A test may break its files: after it they are mended, and the folder compared."""
    run = Run(*(trained_once / name for name in ("run.yaml", "model", "rows.jsonl", "run")))
    kept = {path: path.read_bytes() for path in (run.file, run.rows, *run.model.iterdir())}
    before = content(run.dir)
    yield run
    for path, data in kept.items():
        path.unlink(missing_ok=True)
        path.write_bytes(data)
    after = content(run.dir)
    assert before["checkpoints/step_00000001/manifest.json"]
    assert {name: digest for name, digest in after.items() if name in before} == before
    assert not [name for name in after if name.startswith("checkpoints/") and name not in before]
