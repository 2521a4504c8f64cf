"""The `dist-sft` application, the options that its commands share, and how they speak.

A result goes to standard output and nothing else does, where --json asks for it.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dist_sft.core.errors import printable
from dist_sft.core.redact import scrubbed
from dist_sft.core.terminal import Terminal

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would show what variables hold
    rich_markup_mode="markdown",
    help="Supervised fine-tuning that people can trust: a step is a set of conversations, all else is execution.",
    epilog="Start with `dist-sft demo`, then `dist-sft check run.yaml`, `dist-sft preview run.yaml --row 0`, "
    "`dist-sft train run.yaml`, `dist-sft export RUN_DIR OUT`.",
)
data = typer.Typer(no_args_is_help=True, help="Look at the data of a run, before and beside training.")
app.add_typer(data, name="data")
job = typer.Typer(no_args_is_help=True, help="Look at, follow and stop what was submitted to a cluster.")
app.add_typer(job, name="job")

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="the run file")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="settings that override it, e.g. train.steps=100 model.tuning.rank=8"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="dashboard of the head, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS"),
]
Patience = Annotated[float, typer.Option(min=0, help="seconds without an answer after which following is given up")]
Secrets = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="a variable that every node must have; no value is ever sent; may be repeated"),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="as dist-sft submit said it")]


def working(as_json: bool) -> contextlib.AbstractContextManager[Any]:
    """While a command works: with --json, what anyone prints goes to standard error, out of the result's way."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def say(text: str, style: str) -> None:
    """A message on standard error, without secrets, never wrapped: a path in it can be copied."""
    Terminal(stderr=True, highlight=False, soft_wrap=True).print(scrubbed(text), style=style, markup=False)


def print_json(value: Any) -> None:
    """On one line of standard output. What would steer a terminal is written as JSON's escapes."""
    text = json.dumps(value, ensure_ascii=False)
    print(text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))


def told(text: str) -> str:
    """What a cluster says, as a terminal may show it."""
    return printable(text, kept="\n\r\t")
