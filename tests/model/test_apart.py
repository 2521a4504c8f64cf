"""What transformers says of a model is asked of a process without torch, and again when a file has changed."""

import json
import subprocess
import sys

import pytest

from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model import apart
from dist_sft.model.pretrained import Pretrained
from tests.ranks import ROOT

TWICE = """
import json, shutil, sys
from pathlib import Path
from dist_sft.config.sections import ModelSection
from dist_sft.model.pretrained import Pretrained

folder, cache = map(Path, sys.argv[1:])
def look():
    model = Pretrained(ModelSection(path=str(folder)), cache)
    return [model.vocabulary.chat_template, model.architecture.hidden_size, list(model.stops)]
first = look()
template = folder / "chat_template.jinja"
template.write_text(template.read_text() + "more")
print(json.dumps([first, look()]))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""


@pytest.fixture
def model(tiny_model, tmp_path):
    import shutil

    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_process_that_sees_a_file_change_asks_again(model, tmp_path):
    command = [sys.executable, "-c", TWICE, model, tmp_path / "cache"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    (template, *same), (other, *again) = json.loads(ended.stdout)
    assert other == f"{template}more" and same == again
    here = Pretrained(ModelSection(path=str(model)))  # torch is in this process
    assert here.vocabulary.chat_template == other and [here.architecture.hidden_size, list(here.stops)] == same


def test_both_ways_to_ask_say_the_same(model, monkeypatch):
    settings = ModelSection(path=str(model))
    here = Pretrained(settings)
    monkeypatch.delitem(sys.modules, "torch")
    there = apart.ask(settings, apart.VOCABULARY, pytest.fail)
    assert Vocabulary(**there) == here.vocabulary
    said = apart.ask(settings, apart.CONFIG, pytest.fail)
    monkeypatch.undo()
    assert said == here.architecture.read.spelled_out()


def test_an_error_there_is_the_error_here(model, monkeypatch):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ModelError, match="the folder holds no tokenizer"):
        apart.ask(ModelSection(path=str(model)), apart.VOCABULARY, pytest.fail)
