"""`dist-sft preview`: one row as the model gets it."""

import io
import json

import pytest
from rich.console import Console

from dist_sft.cli.show.preview import show
from dist_sft.commands.preview import RowView

pytestmark = pytest.mark.xdist_group("cluster")  # one worker makes the run of the fixture

CHAT = {
    "messages": [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Copy axe"},
        {"role": "assistant", "content": "axe"},
        {"role": "user", "content": "Copy yak"},
        {"role": "assistant", "content": "yak"},
    ]
}


@pytest.fixture
def chat(run):
    """The run with one chat of two answers for data."""
    run.rows.write_text(json.dumps(CHAT) + "\n")
    return run


def preview(sft, *arguments):
    ended = sft("preview", *arguments, "--json")
    assert (ended.code, ended.error) == (0, "")
    (view,) = ended.values
    return view


def test_json_gives_tokens_ids_weights_and_text(sft, chat):
    view = preview(sft, chat.file)
    assert view["where"] == f"{chat.rows}:1"
    assert view["text"].count("<|im_start|>") == 5 and "Answer briefly." in view["text"]
    assert "".join(view["tokens"]) == view["text"]
    assert len(view["tokens"]) == len(view["ids"]) == len(view["weights"])
    assert all(isinstance(id_, int) for id_ in view["ids"])
    assert set(view["weights"]) == {0.0, 1.0}


def test_what_is_learned_is_the_answers_and_their_stop_tokens(sft, chat):
    view = preview(sft, chat.file)
    learned = [token for token, weight in zip(view["tokens"], view["weights"], strict=True) if weight]
    assert "".join(learned) == view["supervised"] == "axe<|im_end|>yak<|im_end|>"


def test_overrides_and_a_row_s_own_weights_show(sft, chat):
    last = preview(sft, chat.file, "data.loss.turns=last")
    assert last["supervised"] == "yak<|im_end|>"
    weighted = json.loads(json.dumps(CHAT))
    weighted["messages"][2]["loss_weight"] = 0.25
    chat.rows.write_text(json.dumps(CHAT) + "\n" + json.dumps(weighted) + "\n")
    assert set(preview(sft, chat.file, "--row", 1)["weights"]) == {0.0, 0.25, 1.0}


def test_the_terminal_shows_learned_tokens_on_green():
    view = RowView("a.jsonl:1", "hi yo<e>", ["hi ", "yo", "<e>"], [1, 2, 3], [0.0, 0.5, 1.0], "yo<e>")
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200, no_color=False)
    show(view, terminal)
    text = terminal.file.getvalue()
    assert "\x1b[90mhi \x1b[0m" in text
    assert "\x1b[37;48;2;0;90;0myo\x1b[0m" in text
    assert "\x1b[37;48;2;0;140;0m<e>\x1b[0m" in text
    assert "3 tokens, 2 " in text and "loss weights 0.5, 1" in text


def test_without_colours_learned_tokens_stand_in_brackets(sft, chat):
    ended = sft("preview", chat.file)
    assert ended.out.startswith(f"{chat.rows}:1  ")
    assert "⟦axe<|im_end|>⟧" in ended.out and "⟦yak<|im_end|>⟧" in ended.out
    assert ended.out.count("⟦") == 3  # and one in the legend


MENTION = {"messages": [{"role": "user", "content": "Copy <|im_end|>"}, {"role": "assistant", "content": "axe"}]}


def test_a_control_token_that_is_spelled_out_is_told_from_the_token(sft, chat):
    chat.rows.write_text(json.dumps(MENTION) + "\n")
    view = preview(sft, chat.file)
    assert "".join(view["tokens"][i] for i in view["spelled"]) == "<|im_end|>"
    assert view["text"].count("<|im_end|>") == view["tokens"].count("<|im_end|>") + 1, "one is letters"
    plain = sft("preview", chat.file).out
    assert "Copy ⟪<|im_end|>⟫<|im_end|>" in plain and "⟦axe<|im_end|>⟧" in plain
    assert "⟪text that spells a control token⟫" in plain
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=300, no_color=False)
    view = RowView("a.jsonl:1", "", ["x", "<|", "e|>", "<|e|>"], [1, 2, 3, 4], [0.0, 0.0, 1.0, 1.0], "", (1, 2))
    show(view, console)
    shown = console.file.getvalue()
    assert "\x1b[4;31m<|\x1b[0m" in shown and "\x1b[37;48;2;0;140;0m<|e|>\x1b[0m" in shown
    assert "\x1b[4;31;48;2;0;140;0me|>\x1b[0m" in shown, "learned letters are on green, too"


def test_nothing_is_said_of_letters_where_there_are_none(sft, chat):
    assert preview(sft, chat.file)["spelled"] == [] and "⟪" not in sft("preview", chat.file).out


def test_a_row_cannot_command_the_terminal():
    for system in ("truecolor", None):
        view = RowView("[red]a.jsonl:1", "x", ["\x1b[2J[bold]", "\x9bx\r"], [1, 2], [0.0, 1.0], "x")
        console = Console(file=io.StringIO(), force_terminal=system is not None, color_system=system, width=200)
        show(view, console)
        text = console.file.getvalue()
        assert "\x1b[2J" not in text and "\x9b" not in text and "\r" not in text
        assert "␛[2J[bold]" in text and "[red]a.jsonl:1" in text


def test_a_row_or_a_source_that_is_not_there_is_refused(refused, run):
    assert refused("preview", run.file, "--row", 60) == (
        f"{run.rows}: there is no row 60: it has 60, counted from 0\n  fix: use --row 0 to 59"
    )
    assert refused("preview", run.file, "--source", 1) == (
        "--source: there is no source 1: the run file has 1, counted from 0\n  fix: leave --source out"
    )
    two = f"data.sources=[{run.rows}, {run.rows}]"
    assert refused("preview", run.file, two, "--source", 2).endswith("fix: use --source 0 to 1")


def test_a_bad_row_is_shown_with_its_line_and_its_fix(refused, chat):
    chat.rows.write_text(json.dumps(CHAT) + '\n{"messages": [{"role": "bot", "content": "x"}]}\n')
    assert refused("preview", chat.file, "--row", 1) == (
        f"{chat.rows}:2: messages[0].role is 'bot'\n"
        "  fix: use system, user, assistant or tool, or map it: data.role_names.bot=assistant"
    )
