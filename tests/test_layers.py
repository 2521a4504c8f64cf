"""The layers of pyproject.toml are held: an import that goes up, or a command that prints, fails `tools/check`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import ROOT

LINT = Path(sys.executable).with_name("lint-imports")


@pytest.fixture
def lint(tmp_path):
    """A function: (module, line planted at its end) -> how lint-imports ended on a copy of the package."""
    shutil.copytree(ROOT / "dist_sft", tmp_path / "dist_sft", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def run(module, line):
        with (tmp_path / "dist_sft" / module).open("a") as file:
            file.write(line)
        return subprocess.run(
            [LINT, "--no-cache"], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        ("core/units.py", "import dist_sft.config.load\n", "dist_sft.core is not allowed to import dist_sft.config"),
        ("run/folder.py", "import dist_sft.cluster.runner\n", "dist_sft.run is not allowed to import dist_sft.cluster"),
        ("remote/jobs.py", "import dist_sft.cluster.runner\n", "dist_sft.remote is not allowed to import dist_sft.c"),
        ("commands/stats.py", "import rich\n", "dist_sft.commands is not allowed to import rich"),
        ("chat/spans.py", "import torch\n", "dist_sft.chat is not allowed to import torch"),
    ],
)
def test_an_import_against_the_layers_fails(lint, module, line, said):
    done = lint(module, line)
    assert done.returncode == 1 and said in done.stdout, done.stdout


def test_a_package_without_a_place_among_the_layers_fails(lint, tmp_path):
    (tmp_path / "dist_sft" / "extra").mkdir()
    (tmp_path / "dist_sft" / "extra" / "__init__.py").touch()
    done = lint("core/units.py", "")
    assert done.returncode == 1 and "dist_sft.extra" in done.stdout, done.stdout


def test_what_is_committed_holds_them(lint):
    done = lint("core/units.py", "")
    assert done.returncode == 0, done.stdout
