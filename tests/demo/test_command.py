"""The demo's run file is a run file, and the demo wipes nothing but its own."""

import io

import pytest
from rich.console import Console

from dist_sft.config.load import load_config
from dist_sft.core.errors import ConfigError
from dist_sft.core.ownership import MARK
from dist_sft.demo import command, run_file
from dist_sft.demo.answers import Answer
from dist_sft.demo.dataset import conversations


@pytest.mark.parametrize(("gpus", "workers", "each"), [(0, 2, 0), (1, 1, 1), (2, 2, 1), (8, 2, 1)])
def test_the_run_file_is_valid_and_asks_for_what_the_machine_has(tmp_path, gpus: int, workers: int, each: int):
    config = load_config(run_file.write(tmp_path, seed=3, gpus=gpus))
    assert (config.cluster.workers, config.cluster.gpus_per_worker, config.run.seed) == (workers, each, 3)
    assert config.tracking.wandb and config.tracking.wandb.mode == "offline"


def test_a_folder_with_something_else_in_it_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="something else than a demo"):
        command.run(tmp_path, seed=0)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.fixture
def made(tmp_path):
    """A folder as a demo leaves it, with notes of somebody beside."""
    folder = tmp_path / "demo"
    command._start_afresh(folder)
    for name in ("run.yaml", "train.jsonl", "model/config.json", "run/checkpoints/x", "export/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    command._record(folder, running=False)
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_second_demo_removes_what_the_first_has_made_and_nothing_else(made):
    command._start_afresh(made)
    assert sorted(path.name for path in made.iterdir()) == [MARK, "notes.txt"]


@pytest.mark.parametrize("name", ["run.yaml", "model/mine.txt", "run/mine.txt", "held_out.jsonl", "export/a/b"])
def test_it_removes_nothing_where_somebody_has_worked(made, name):
    (made / name).parent.mkdir(exist_ok=True)
    (made / name).write_text("mine")
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="the demo has not left it so") as error:
        command._start_afresh(made)
    assert error.value.where == str(made / name)
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_a_demo_that_was_killed_starts_afresh(made):
    command._record(made, running=True)
    (made / "run" / "metrics.jsonl").write_text("of the run that was killed")
    command._start_afresh(made)
    assert sorted(path.name for path in made.iterdir()) == [MARK, "notes.txt"]


def test_the_tables_show_any_answer_of_any_model():
    rows = conversations(0, 26, held_out=True)
    before = [Answer(row, "[/bold] \x1b[31m\ufffd") for row in rows]
    after = [Answer(row, row.answer) for row in rows]
    console = Console(width=120, file=io.StringIO())
    console.print(command.scores(before, after), command.examples(before, after))
    text = console.file.getvalue()
    assert "100%" in text and "[/bold]" in text and "\x1b" not in text
