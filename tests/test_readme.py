"""The README tells the truth where a machine can check it."""

import re
from pathlib import Path

from dist_sft.config.load import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


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
