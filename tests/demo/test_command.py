"""The demo's run file is a run file, and the demo wipes nothing but its own."""

import io

import pytest
from rich.console import Console

from dist_sft.config.load import load_config
from dist_sft.core.errors import ConfigError
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


def test_the_tables_show_any_answer_of_any_model():
    rows = conversations(0, 26, held_out=True)
    before = [Answer(row, "[/bold] \x1b[31m\ufffd") for row in rows]
    after = [Answer(row, row.answer) for row in rows]
    console = Console(width=120, file=io.StringIO())
    console.print(command.scores(before, after), command.examples(before, after))
    text = console.file.getvalue()
    assert "100%" in text and "[/bold]" in text and "\x1b" not in text
