"""A run folder that an earlier version wrote is read by this one: it goes on, and is exported.

`kept/` was written before the package got its present layout (commit 23bc4bd), by 4 steps on 2 ranks of which the last
checkpoint is gone. KEPT stands for its own folder.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from dist_sft.commands.export import export
from tests.ranks import losses, train_on_ranks

KEPT = Path(__file__).with_name("kept")


@pytest.fixture
def kept(tmp_path):
    """A copy of the folder, with the paths that it would have here."""
    shutil.copytree(KEPT, tmp_path / "kept")
    for path in (tmp_path / "kept").rglob("*.*"):
        if path.suffix in (".json", ".jsonl", ".yaml"):
            path.write_text(path.read_text().replace("KEPT", str(tmp_path / "kept")))
    return tmp_path / "kept"


@pytest.mark.xdist_group("kept")
def test_a_run_of_before_goes_on_as_it_did_and_is_exported(kept):
    run, before = kept / "run", losses(kept / "run")
    exported = export(run, kept / "export")
    assert AutoModelForCausalLM.from_pretrained(exported).config.num_hidden_layers == 1
    train_on_ranks([yaml.safe_load((run / "run.yaml").read_text())], 2)
    after = losses(run)
    assert list(after) == [1, 2, 3, 4] and after == pytest.approx(before, rel=1e-5)
    notes = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes if note["kind"] == "note" and note["text"] == "start"] == [0, 2]
