"""When a run ends before its last step."""

import json
import math

import pytest

from dist_sft.checkpoint.layout import whole_steps
from tests.ranks import losses, records, train_on_ranks


def settings(tiny_run, folder, **more):
    return tiny_run | {
        "run": {"name": "stops", "dir": str(folder)},
        "cluster": {"workers": 2, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": 3}},
        **more,
    }


@pytest.fixture(scope="module")
def ended(tiny_run, tmp_path_factory):
    """A run whose second loss is not finite, and one whose held-out loss cannot fall, which is started twice."""
    folder = tmp_path_factory.mktemp("stops")
    train = tiny_run["train"] | {"schedule": "constant", "warmup": 0}
    blown_up = train | {"learning_rate": 1e30, "clip": 0, "optimizer": {"name": "sgd"}}
    stuck = train | {"learning_rate": 1e-12, "steps": 30}
    source = tiny_run["data"]["sources"][0]
    runs = [
        settings(tiny_run, folder / "blown_up", train=blown_up, checkpoint={"every": 1}),
        settings(tiny_run, folder / "stuck", train=stuck,
                 eval={"source": source, "every": 2, "patience": 3, "min_delta": 0.01, "samples": 30}),
    ]  # fmt: skip
    return folder, train_on_ranks([*runs, runs[1]], 2, check=False)


@pytest.mark.xdist_group("stops")
def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_samples(ended):
    folder, (error, *_) = ended
    assert error.startswith("TrainingError: step 2, rank 0: the loss is nan")
    rows = error.split("(source:row) are ")[1].split("\n")[0].split(", ")
    assert 0 < len(rows) < 12 and all(row.startswith("0:") for row in rows)
    assert "dist-sft steps --from 1" in error and "dist-sft preview" in error
    assert list(losses(folder / "blown_up")) == [1] and math.isfinite(losses(folder / "blown_up")[1])
    assert whole_steps(folder / "blown_up" / "checkpoints") == [1]


@pytest.mark.xdist_group("stops")
def test_a_held_out_loss_that_no_longer_falls_stops_the_run_after_its_patience(ended):
    folder, (_, *errors) = ended
    assert errors == [None, None]
    assert [record["step"] for record in records(folder / "stuck", "eval")] == [0, 2, 4, 6, 8]
    assert records(folder / "stuck", "note")[-1]["text"] == "stopped early"
    manifest = json.loads((folder / "stuck/checkpoints/step_00000008/manifest.json").read_text())
    assert manifest["state"]["waited"] == 3


@pytest.mark.xdist_group("stops")
def test_the_same_command_after_an_early_stop_stops_at_once(ended):
    folder, _ = ended
    notes = [(record["step"], record["text"]) for record in records(folder / "stuck", "note")]
    assert [note for note in notes if note[1] in ("start", "stopped early")] == [
        (0, "start"), (8, "stopped early"), (8, "start"), (8, "stopped early")
    ]  # fmt: skip
    assert list(losses(folder / "stuck")) == list(range(1, 9))
    assert whole_steps(folder / "stuck" / "checkpoints") == [8]


@pytest.mark.xdist_group("stops")
def test_held_out_rows_that_are_left_out_are_counted(ended):
    folder, _ = ended
    assert "held-out rows overlong: 1" in {record["text"] for record in records(folder / "stuck", "note")}
