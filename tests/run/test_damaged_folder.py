"""A run folder that a power cut has damaged goes on from its checkpoint, and says what was lost."""

import json
import shutil

import pytest

from dist_sft.checkpoint.layout import newest
from dist_sft.core.errors import CheckpointError, DataError, TrackingError
from dist_sft.data.ledger import Ledger
from dist_sft.run.folder import next_session, refuse_changes
from dist_sft.tracking.json_lines import JsonLines
from dist_sft.tracking.records import Note, Step, read
from tests.ranks import losses, train_on_ranks

ENTRY = b'{"step": 0, "position": 3, "where": "rows.jsonl:4", "reason": "overlong", "what": "too long", "lost": 5}\n'
DAMAGES = {
    "zeros": b"\0" * 300, "a blank line": b"", "half a line": b'{"kind": "step", "step": 3, "lo',
    "no text": b"\xff\xfe\x80",
    "the end of a line": b'0.2, "tokens": 5}', "nested without end": b"[" * 100_000,
    "many digits": b'{"a": ' + b"9" * 5000,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """A run of four steps, with a checkpoint of step 2 and of step 4; gives its settings."""
    folder = tmp_path_factory.mktemp("damaged") / "whole"
    settings = tiny_run | {
        "run": {"name": "damaged", "dir": str(folder), "seed": 5},
        "train": tiny_run["train"] | {"steps": 4},
        "checkpoint": {"every": 2, "keep": 5},
        "cluster": {"workers": 1, "gpus_per_worker": 0},
    }
    train_on_ranks([settings], 1)
    return settings, folder


def test_a_damaged_folder_goes_on_with_the_same_losses(trained):
    settings, whole = trained
    folder = whole.with_name("broken")
    shutil.copytree(whole, folder)
    shutil.rmtree(newest(folder))
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    damaged = b"\n".join([*DAMAGES.values(), b""])
    (folder / "metrics.jsonl").write_bytes(b"".join(lines[:2]) + damaged + b"".join(lines[2:]) + b'{"kind": "st')
    (folder / "ledger.jsonl").write_bytes(b"\0\0\0\n" + ENTRY)
    (folder / "session").write_bytes(b"\0\0")
    for name in ("step_analysis", "step_\u00b2", "step_1", "step_00000002.notes"):
        (folder / "checkpoints" / name).mkdir()
        (folder / "checkpoints" / name / "mine.txt").write_text("mine")
    train_on_ranks([settings | {"run": settings["run"] | {"dir": str(folder)}}], 1)
    assert losses(folder) == losses(whole)
    notes = [note.text for note in read(folder / "metrics.jsonl", Note)]
    count = len(lines) + len(DAMAGES)
    assert f"metrics.jsonl: damaged and left out: lines 3, 4, 5, 6, 7 and 2 more of {count}" in notes
    assert "ledger.jsonl: damaged and left out: line 1 of 2" in notes
    assert (folder / "ledger.jsonl").read_bytes() == ENTRY
    assert int((folder / "session").read_text()) > 1_000_000
    for name in ("step_analysis", "step_\u00b2", "step_1", "step_00000002.notes"):
        assert (folder / "checkpoints" / name / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_is_left_out_and_told(trained, tmp_path, damage):
    lines = (trained[1] / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(lines[:3]) + damage + b"\n" + b"".join(lines[3:]))
    kept = JsonLines(path, 4)
    assert kept.damaged == f"metrics.jsonl: damaged and left out: line 4 of {len(lines) + 1}"
    assert path.read_bytes() == b"".join(lines) and [step.step for step in read(path, Step)] == [1, 2, 3, 4]
    assert JsonLines(path, 4).damaged is None
    (tmp_path / "ledger.jsonl").write_bytes(ENTRY + damage + b"\n" + ENTRY)
    assert len(Ledger.resume(tmp_path / "ledger.jsonl", 4, write=True).entries) == 2


def test_json_that_is_no_record_is_refused_and_not_removed(tmp_path):
    for name, error, resume in (
        ("metrics.jsonl", TrackingError, lambda path: JsonLines(path, 4)),
        ("ledger.jsonl", DataError, lambda path: Ledger.resume(path, 4, write=True)),
    ):
        path = tmp_path / name
        path.write_text('{"kind": "new"}\n')
        with pytest.raises(error, match=f"{name}:1: no "):
            resume(path)
        assert path.read_text() == '{"kind": "new"}\n'


@pytest.mark.parametrize("content", ["", "null", "[]", "{}", '{"learned": 5}', "{", "[" * 100_000, "\0\0"])
def test_a_damaged_run_json_says_what_to_do(trained, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    now = json.loads((trained[1] / "run.json").read_text())
    with pytest.raises(CheckpointError, match=r"bring run\.json back, or start in a new run\.dir"):
        refuse_changes(tmp_path, now, trained[1] / "checkpoints")


@pytest.mark.parametrize("content", ["", "\0", "x", "9" * 5000])
def test_a_damaged_session_is_above_all_before(tmp_path, content):
    (tmp_path / "session").write_text(content)
    first = next_session(tmp_path)
    assert first > 1_000_000 and next_session(tmp_path) == first + 1
