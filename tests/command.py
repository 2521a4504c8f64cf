"""The real command in a process of its own, and rows to give it."""

import json
import subprocess
import sys
from pathlib import Path

from dist_sft.model.remembered import WORK
from tests.ranks import ROOT

DIST_SFT = Path(sys.executable).with_name("dist-sft")


def chat(*roles):
    """A line of a file: one turn of each role."""
    return json.dumps({"messages": [{"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)]}) + "\n"


def without_work(error):
    """What a command wrote to standard error, without what it told of work that is done once for a model."""
    return "".join(line for line in error.splitlines(keepends=True) if line.strip() not in WORK.values())


def process(*arguments, timeout=300):
    """Run `dist-sft ARGUMENTS` to its end."""
    ended = subprocess.run(
        [DIST_SFT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    ended.stderr = without_work(ended.stderr)
    return ended


def start(log, *arguments):
    """`dist-sft ARGUMENTS` as a terminal starts it: in a process group of its own, which gets Ctrl-C."""
    return subprocess.Popen(
        [DIST_SFT, *map(str, arguments)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
