"""`check` opens the files of a run once, in whatever process, and compiles nothing that the run does not need."""

import os
from collections import Counter

import pytest

from dist_sft.demo import dataset, model, run_file
from tests.command import process
from tests.ranks import ROOT

RECORD = """
import os, sys

def record(event, arguments):
    if event == "open" and isinstance(arguments[0], str | os.PathLike) and arguments[1] == "r":
        file = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, (os.path.abspath(arguments[0]) + "\\n").encode())
        os.close(file)

sys.addaudithook(record)
"""


@pytest.fixture
def demo(tmp_path):
    """The folder of a small demo, before its training."""
    folder = tmp_path / "demo"
    folder.mkdir()
    rows = dataset.conversations(0, 600, held_out=False)
    dataset.write(folder / "train.jsonl", rows)
    dataset.write(folder / "held_out.jsonl", dataset.conversations(0, 32, held_out=True))
    model.save(folder / "model", 0, (turn["content"] for row in rows for turn in row.messages))
    run_file.write(folder, 0, gpus=0)
    return folder


@pytest.mark.xdist_group("rehearsal")
def test_check_opens_the_deepspeed_json_and_the_architecture_once(demo, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(RECORD)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OPENED", str(tmp_path / "opened"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    done = process("check", demo / "run.yaml")
    assert done.returncode == 0, done.stderr
    opened = Counter((tmp_path / "opened").read_text().splitlines())
    times = {demo / "run.yaml": 1, ROOT / "ds_configs" / "cpu_debug.json": 1}
    times[demo / "model" / "config.json"] = 2  # by transformers, and as the key of what is remembered of it
    assert {path: opened[str(path)] for path in times} == times
    assert not (tmp_path / "extensions").exists(), "ranks on CPU compile nothing, where no state is offloaded"
    assert any("/dist_sft_rehearsal_" in path for path in opened), "the ranks of the rehearsal are counted, too"
