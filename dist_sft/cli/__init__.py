"""One command for each thing a user does. Heavy libraries are imported by the commands that need them.

Exit codes: 0 done, 1 an SftError, 2 a command that was typed wrongly, 130 Ctrl-C.
"""

import importlib.metadata
import logging
import sys
import warnings
from typing import Annotated

import typer

from dist_sft.cli import basics, clusters, looking
from dist_sft.cli.app import app, say
from dist_sft.core.errors import SftError

__all__ = ["basics", "clusters", "looking", "main"]

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def main() -> None:
    """The `dist-sft` command: an error of the user's is one clear message and exit code 1."""
    _quiet()
    try:
        app()
    except SftError as error:
        say(f"error: {error}", "red")
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say("interrupted", "yellow")
        raise


class _Said(logging.Handler):
    """What a command does while the user waits: a line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage(), "dim")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dist-sft {importlib.metadata.version('dist-sft')}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version, and exit")
    ] = False,
) -> None:
    """What stands before the command."""


def _quiet() -> None:
    """Our own messages, and none of libraries, which speak up at import about what is no concern of the user's;
    DeepSpeed on standard output, even."""
    log = logging.getLogger("dist_sft")
    log.handlers = [_Said()]
    log.setLevel(logging.INFO)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
