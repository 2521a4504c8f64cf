"""No text commands the terminal of whoever reads it, or looks like a line of ours."""

import io
import json

import pytest
from rich.table import Table
from rich.text import Text

from dist_sft.cli.app import print_json, say, told
from dist_sft.core.errors import ClusterError, ConfigError, DataError, Lines, ModelError, RowError
from dist_sft.core.terminal import ScrubbedStream, Terminal

HOSTILE = "a\x1b]0;owned\x07\x1b[31mb\x9bc\r\n  fix: run rm -rf\u2028d\u202ee"


@pytest.mark.parametrize("kind", [ConfigError, DataError, ModelError, ClusterError])
def test_an_error_is_of_one_line_and_its_fix_of_another_whatever_they_repeat(kind):
    said = str(kind(f"bad {HOSTILE}", where=f"{HOSTILE}:3", fix=f"remove {HOSTILE}"))
    head, fix = said.split("\n")
    assert head.isprintable() and fix.isprintable() and said.count("\n  fix: ") == 1
    assert "\\x1b" in head and "owned" in head, "spelled out, not lost"
    assert str(RowError(HOSTILE, reason="x", where=HOSTILE)).isprintable()


def test_several_errors_in_one_keep_their_lines_and_nothing_else():
    inner = [str(ConfigError(HOSTILE, where=f"run.yaml:{i}", fix="x")) for i in (1, 2)]
    said = str(ConfigError(Lines("\n".join(inner))))
    assert said.split("\n") == [line for one in inner for line in one.split("\n")] and len(said.split("\n")) == 4


def test_whatever_a_command_prints_is_made_safe_and_its_own_colours_stay(capsys):
    table = Table(title=HOSTILE)
    table.add_column("x")
    table.add_row(Text(HOSTILE, style="red"))
    for colours in (False, True):
        out = io.StringIO()
        console = Terminal(file=out, force_terminal=colours, width=200, color_system="standard" if colours else None)
        console.print(HOSTILE, markup=False, highlight=False, soft_wrap=True)
        console.print(table)
        text = out.getvalue()
        assert "\x1b]0" not in text and "\x07" not in text and "\x9b" not in text and "\u202e" not in text
        assert "\\x1b]0;owned" in text and ("\x1b[31m" in text) == colours
    print_json({"x": HOSTILE})
    said = capsys.readouterr().out
    assert said.removesuffix("\n").isprintable() and json.loads(said) == {"x": HOSTILE}
    assert told(f"log {HOSTILE}\n").replace("\n", "").replace("\r", "").isprintable()
    say(HOSTILE, "red")
    assert "\x1b]0" not in capsys.readouterr().err


def test_standard_error_of_libraries_is_without_secrets():
    out = io.StringIO()
    stream = ScrubbedStream(out)
    print("GET https://me:hunter22@h.org/x?token=hunter22 failed", file=stream)
    stream.writelines(["password=hunter22\n"])
    assert "hunter22" not in out.getvalue() and "https://<hidden>@h.org/x?token=<hidden> failed" in out.getvalue()
    assert stream.isatty() is False
