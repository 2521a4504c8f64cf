"""Templates and tokenizers come from a registry: without one the tests that need them are skipped."""

import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.chat.templates.judge import judged


@pytest.fixture(scope="session")
def cells_of():
    """A function: an entry of the listing -> its cells."""

    @cache
    def cells(entry):
        try:
            return judged(entry)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no registry: {error}")

    return cells


@pytest.fixture(scope="session")
def cases():
    """The folder of cases from bug reports, which is not in the repository."""
    folder = Path(__file__).resolve().parents[4] / "shared" / "cases" / "templates"
    if not folder.is_dir():
        pytest.skip("no ../shared/cases")
    return folder
