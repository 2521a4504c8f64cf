"""One command for each thing a user does. Heavy libraries are imported by the commands that need them.

Exit codes: 0 done, 1 an SftError, 2 a command that was typed wrongly; 128 + the number of a signal that ended it: 130
Ctrl-C, 143 SIGTERM, 129 SIGHUP. A followed job ends with its own.
"""

import contextlib
import importlib.metadata
import logging
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated

from dist_sft.core import signals

if Path(sys.argv[0]).name == "dist-sft":
    signals.arm()  # what follows takes a second, in which a signal is told in one line, too

import typer

from dist_sft.cli import basics, clusters, looking
from dist_sft.cli.app import app, say
from dist_sft.core.errors import SftError
from dist_sft.core.signals import stopping
from dist_sft.core.terminal import ScrubbedStream

__all__ = ["basics", "clusters", "looking", "main"]


def main() -> None:
    """The `dist-sft` command: an error of the user's is one clear message and exit code 1."""
    _quiet()
    with contextlib.redirect_stderr(ScrubbedStream(sys.stderr)), stopping() as stop:
        try:
            app()
        except SftError as error:
            if stop.first is None:
                say(f"error: {error}", "red")
                sys.exit(1)
        except (SystemExit, KeyboardInterrupt):
            if stop.first is None:
                raise
        except Exception:  # noqa: BLE001  # a fault of ours, or what a signal made of a library
            if stop.first is None:
                traceback.print_exc()
                sys.exit(1)
        if stop.first is not None:
            say(stop.line, "yellow")
            sys.exit(128 + stop.first)


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
