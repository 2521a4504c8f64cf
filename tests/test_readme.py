"""The README tells the truth where a machine can check it."""

import re
from pathlib import Path

import pytest

from dist_sft.config.load import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("tools/**/*.md")})


def test_the_run_file_of_the_readme_is_one(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    path = tmp_path / "run.yaml"
    path.write_text(block)
    config = load_config(path)
    assert config.model.path == "Qwen/Qwen3-8B" and len(config.data.sources) == 3


def test_every_file_that_the_readme_names_is_there():
    named = set(re.findall(r"`((?:dist_sft|tests|tools|launchers|ds_configs|docs|cluster)/[\w./]*)`", README))
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_and_test_that_a_page_names_is_there(page):
    """`config/root.py` is one of dist_sft or of tests; a::b, a test of that name."""
    lost = []
    for name, test in re.findall(r"`([\w./]+/\w+\.py)(?:::(\w+))?", page.read_text()):
        found = [path for path in (ROOT / name, ROOT / "dist_sft" / name, ROOT / "tests" / name) if path.is_file()]
        if not found or (test and f"def {test}(" not in found[0].read_text()):
            lost.append(f"{name}::{test}" if test else name)
    assert lost == []


def test_the_table_of_guarantees_names_tests_that_are_there():
    rows = re.findall(r"^\| (.+?) \| (.*`.*test_\w+.*) \|$", README, re.M)
    assert len(rows) > 20
    for guarantee, tests in rows:
        files = re.findall(r"`(tests/[\w./]+)`", tests)
        assert files and [file for file in files if not (ROOT / file).exists()] == [], guarantee
