"""Commands that look at data, or at a model which they know already, import neither torch nor transformers."""

import os
import subprocess
import sys

import pytest

from dist_sft.model.remembered import WORK
from tests.command import DIST_SFT
from tests.ranks import ROOT

WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "deepspeed", "ray", "peft", "datasets"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Blocker())
from dist_sft.cli import main
sys.argv = ["dist-sft", *sys.argv[1:]]
main()
"""
PLAN = ("plan", "--gpus", "1", "--gpu", "H100")
CHECK = ("check", "--fast")


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(run, own_cache, tmp_path):
    """A command of a process of its own; with the libraries out of its reach, or with them."""

    def started(words, without=True):
        start = [sys.executable, "-c", WITHOUT] if without else [DIST_SFT]
        given = [run.file, f"data.cache={own_cache}", f"run.dir={tmp_path / 'run'}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [*start, *words, *given], capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path
        )
        assert ended.returncode == 0, ended.stderr
        return ended

    return started


@pytest.mark.parametrize("words", [("preview",), ("steps",), ("data", "stats")], ids=lambda words: words[-1])
def test_looking_at_data_imports_no_torch_even_the_first_time(command, words):
    assert command(words).stdout


def test_what_was_read_once_is_not_read_again(command):
    command(("preview",))
    assert WORK["vocabulary"] not in command(("preview",)).stderr


def test_plan_and_check_import_no_torch_the_second_time_and_say_what_they_do_the_first(command):
    first = command(CHECK, without=False)
    assert WORK["layout"] in first.stderr and WORK["trial"] in first.stderr
    for words in (CHECK, PLAN):
        again = command(words)
        assert again.stdout and not any(said in again.stderr for said in WORK.values())
    assert command(CHECK).stdout == first.stdout


def test_another_tokenizer_is_read_anew(command, run):
    command(("preview",))
    file = run.model / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_start|>", "<|im_start|> "))
    ended = command(("preview",))
    assert WORK["vocabulary"] in ended.stderr and "<|im_start|> user" in ended.stdout
