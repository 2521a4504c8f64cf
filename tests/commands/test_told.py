"""What `check` and `stats` say of text that holds control tokens; and what a start says."""

import json

import pytest

from dist_sft.core.errors import RowError
from dist_sft.run.data import RunData
from dist_sft.run.opened import open_run

pytestmark = pytest.mark.xdist_group("cluster")  # one worker makes the run of the fixture

WRITTEN = {"text": "<|im_start|>user\nCopy axe<|im_end|>\n<|im_start|>assistant\naxe<|im_end|>\n"}
MENTION = {"messages": [{"role": "user", "content": "Copy <|im_end|>"}, {"role": "assistant", "content": "axe"}]}


def source(run, rows, **settings):
    """An override that gives the run these rows."""
    path = run.file.parent / "other" / "other.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.sources={json.dumps([{'path': str(path), **settings}])}"


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
def test_check_and_a_start_refuse_text_that_the_template_wrote(refused, run, bad_rows, tmp_path):
    given = [source(run, [WRITTEN] * 13), f"data.bad_rows={bad_rows}", f"run.dir={tmp_path / 'new'}"]
    said = refused("check", run.file, *given, "--fast")
    assert "other.jsonl:" in said and "its text is written with control tokens of this model's chat template" in said
    assert "parse reads it as the 2 turns that it is; text keeps it as plain text" in said
    with pytest.raises(RowError, match="its text is written with control tokens"):
        RunData.of(open_run(str(run.file), given)).probe()


def test_check_says_what_was_read_back(sft, run, tmp_path):
    given = [source(run, [WRITTEN] * 13, control_tokens="parse"), f"run.dir={tmp_path / 'new'}"]
    (report,) = sft("check", run.file, *given, "--fast", "--json").values
    assert (report["reread"], report["thoughts"], report["spelled"]) == (13, 0, {})
    assert report["masks_proved"] == 13 and report["masks"]["stop_share"] == 1.0
    assert "first rows whose text was read as turns: 13" in sft("check", run.file, *given, "--fast").out
    (view,) = sft("preview", run.file, *given, "--json").values
    assert view["supervised"] == "axe<|im_end|>" and not view["spelled"]


def test_check_and_stats_tell_of_control_tokens_that_rows_mention(sft, run, tmp_path):
    given = [source(run, [MENTION] * 13), f"run.dir={tmp_path / 'new'}"]
    line = "control tokens in the text of rows, spelled out in letters: <|im_end|> in 13 of the first rows"
    for command in (("check", run.file, *given, "--fast"), ("data", "stats", run.file, *given)):
        assert line in sft(*command).out.replace("\n", " ")
        (report,) = sft(*command, "--json").values
        assert report["spelled"] == {"<|im_end|>": 13} and report["unread"] == {}
    assert RunData.of(open_run(str(run.file), given)).brief().told.lines() == [line]


THOUGHTFUL = """{% set last = messages | map(attribute='role') | list | length - 1 %}{% for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.reasoning_content and loop.index0 == last %}<think>{{ m.reasoning_content }}</think>{% endif -%}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_check_and_a_start_say_once_that_earlier_thoughts_are_left_out(sft, run, tmp_path):
    (tmp_path / "chat.jinja").write_text(THOUGHTFUL)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "axe", "reasoning_content": "hm"}]
    given = [
        source(run, [{"messages": turns * 2}] * 13),
        f"data.template={tmp_path / 'chat.jinja'}",
    ]
    given.append(f"run.dir={tmp_path / 'new'}")
    line = (
        "the template leaves out the thoughts of earlier turns, and 13 of the first rows learn such an answer without"
    )
    (report,) = sft("check", run.file, *given, "--fast", "--json").values
    assert report["forgotten"] == 13
    assert line in " ".join(sft("check", run.file, *given, "--fast").out.split())
    (said,) = RunData.of(open_run(str(run.file), given)).brief().told.lines()
    assert said.startswith(line)
    assert RunData.of(open_run(str(run.file), [*given, "data.loss.turns=last"])).brief().told.lines() == []


def test_check_tells_where_an_export_stops_and_what_inference_must_pass(sft, run, tmp_path):
    given = [f"run.dir={tmp_path / 'new'}", "data.template_kwargs={enable_thinking: false}"]
    ended = sft("check", run.file, *given, "--fast")
    assert "export stops on  <|im_end|>\n" in ended.out
    assert "at inference, call apply_chat_template(..., enable_thinking=False)" in ended.out.replace("\n", " ")
    (report,) = sft("check", run.file, *given[:1], "--fast", "--json").values
    assert (report["stops"], report["served"], report["warnings"]) == (["<|im_end|>"], {}, [])
