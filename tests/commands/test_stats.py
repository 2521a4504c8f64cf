"""`dist-sft data stats`: the figures are those of the rows, and the picture is one."""

import json

import pytest
from PIL import Image

from dist_sft.cli.show.stats import refuse_other_picture
from dist_sft.core.errors import StorageError
from tests.command import chat

pytestmark = pytest.mark.xdist_group("cluster")  # one worker makes the run of the fixture


@pytest.fixture
def mixed(run, tmp_path):
    """The run's chats, and documents that shall be a tenth of all tokens; three of their rows cannot be learned."""
    lines = [json.dumps({"text": f"A page, number {i}. " * (i % 9 + 1)}) for i in range(40)]
    (tmp_path / "c4.jsonl").write_text("\n".join([*lines, '{"text": ""}', "{", '{"text": "x"}' * 2]) + "\n")
    sources = json.dumps(
        [
            {"path": str(run.rows), "weight": 1},
            {"path": str(tmp_path / "c4.jsonl"), "format": "text", "token_share": 0.1},
        ]
    )
    return [run.file, f"data.sources={sources}", "data.bad_rows=drop", "train.steps=30", f"run.dir={tmp_path / 'run'}"]


def test_the_figures_are_those_of_the_rows(sft, mixed):
    ended = sft("data", "stats", *mixed, "--steps", 0, "--world", 3, "--json")
    assert ended.code == 0, ended.error
    (found,) = ended.values
    dealt = sft("steps", *mixed, "--count", 30, "--world", 3, "--json").values
    chats, pages = found["sources"]
    assert (found["steps"], found["of_steps"], found["world"]) == (30, 30, 3)
    assert (chats["rows"], pages["rows"]) == (60, 43)
    assert chats["seen"] + pages["seen"] == 30 * 13
    assert chats["learned"] + pages["learned"] == sum(len(step["samples"]) for step in dealt)
    assert chats["supervised"] + pages["supervised"] == sum(step["supervised"] for step in dealt)
    assert chats["tokens"] + pages["tokens"] == sum(sum(map(sum, step["tokens"])) for step in dealt)
    assert sum(pages["dropped"].values()) == sum(len(step["dropped"]) for step in dealt) > 0
    assert set(pages["dropped"]) <= {"nothing_supervised", "bad_json"}
    assert pages["token_share"] == pytest.approx(0.1, abs=0.01) == found["token_shares"][-1][1]
    assert found["balance"] == [step["balance"] for step in dealt]
    assert pages["lengths"]["p0"] <= pages["lengths"]["p50"] <= pages["lengths"]["p100"]
    assert chats["epochs"] == pytest.approx(chats["seen"] / 60)


def test_a_person_gets_tables_bars_and_a_picture(sft, mixed, tmp_path):
    ended = sft("data", "stats", *mixed, "--world", 2, "--png", tmp_path / "stats.png")
    assert ended.code == 0, ended.error
    for word in ("steps 1 to 30 of 30", "packs for 2 ranks", "balance", "not learned or cut", "█", "stats.png"):
        assert word in ended.out
    refuse_other_picture(tmp_path / "stats.png")
    with Image.open(tmp_path / "stats.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_a_step_that_is_too_small_for_its_ranks_says_what_to_change(sft, run):
    advice = "the step is small for 16 ranks: 3 of 16 packs are empty"
    assert advice in sft("data", "stats", run.file, "--world", 16, "--json").values[0]["advice"]
    assert advice in sft("steps", run.file, "--world", 16, "--json").values[0]["advice"]
    assert advice in sft("steps", run.file, "--world", 16).out.replace("\n", " ")
    many = ("cluster.workers=16", "cluster.address=ray://head:10001")
    assert advice in sft("check", run.file, *many, "--fast", "--json").values[0]["advice"]
    assert "Set train.samples_per_step to about" in sft("check", run.file, *many, "--fast").out


def test_rows_that_a_share_holds_out_are_told_and_missing_from_the_steps(sft, run, tmp_path):
    held = ["eval.share=0.25", f"eval.source={run.rows}", "eval.samples=7", f"run.dir={tmp_path / 'run'}"]
    held += ["train={epochs: 1, samples_per_step: 13}"]
    (checked,) = sft("check", run.file, *held, "--fast", "--json").values
    count = checked["held_out_share"]
    assert 5 < count < 30 and checked["held_out"] == {str(run.rows): 7, "held_out": 7}
    assert checked["held_out_rows"] == 14 and checked["rows"][0]["rows"] == 60
    (found,) = sft("data", "stats", run.file, *held, "--json").values
    (source,) = found["sources"]
    assert (source["rows"], source["held_out"], source["seen"], source["epochs"]) == (60, count, 60 - count, 1.0)
    dealt = sft("steps", run.file, *held, "--count", 9, "--json").values
    assert len({sample for step in dealt for sample in step["samples"]}) == 60 - count
    assert f"held out by eval.share: {count} rows, {count / 60:.1%} ({run.rows})" in (
        " ".join(sft("data", "stats", run.file, *held).out.split())
    )
    shown = sft("check", run.file, *held, "--fast").out
    assert f"held out of these  {count} by eval.share, which are not trained" in shown
    assert f"held out rows  {run.rows} 7, held_out 7" in shown


def test_a_source_of_which_no_row_can_be_scored_is_named(refused, run, tmp_path):
    (tmp_path / "empty.jsonl").write_text(chat("user") + chat("user"))
    sources = f"eval={{sources: [{{name: good, path: {run.rows}}}, {{name: bad, path: {tmp_path / 'empty.jsonl'}}}]}}"
    error = refused("check", run.file, sources, "data.bad_rows=drop", f"run.dir={tmp_path / 'run'}", "--fast")
    assert (
        error.startswith(f"{tmp_path / 'empty.jsonl'}:") and "none of the first 2 rows of 'bad' can be scored" in error
    )


def test_a_run_without_a_step_is_refused(refused, run, tmp_path):
    (tmp_path / "rows.jsonl").write_text(chat("user", "assistant"))
    sources = json.dumps([{"path": str(tmp_path / "rows.jsonl"), "max_epochs": 1, "weight": 1}])
    error = refused("data", "stats", run.file, f"data.sources={sources}", "train.steps=9")
    assert "every source has ended after 1 samples" in error


def test_a_picture_of_somebody_else_is_not_drawn_over(tmp_path):
    refuse_other_picture(tmp_path / "new.png")
    (tmp_path / "mine.png").write_bytes(b"\x89PNG mine")
    with pytest.raises(StorageError, match="is there already, and no picture of this command"):
        refuse_other_picture(tmp_path / "mine.png")
