"""Templates and rows of public bug reports, with exactly the texts that should be learned."""

import json
import re
import subprocess

import pytest

from dist_sft.model.tokenizer import vocabulary_of
from tests.chat.templates.judge import Bench
from tests.chat.templates.listing import listing, paired
from tests.chat.templates.oracle import Template

pytestmark = [pytest.mark.registry, pytest.mark.xdist_group("templates")]

CASES = ("01", "03", "04", "06", "08", "09", "11", "12", "13", "15", "17", "20", "21", "26")
CONTROL = re.compile(r"<\|[^<>|\s{}']+\|>|\[/?[A-Z_]{3,}\]|<(?:start|end)_of_\w+>")


class Case:
    """One folder of cases: a template, how to set up its tokenizer, a row, and what is right."""

    def __init__(self, folder):
        self.said, self.row = (json.loads((folder / f"{name}.json").read_text()) for name in ("case", "row"))
        self.source = (folder / "template.jinja").read_text()
        self.named = {name: self.said[name] for name in ("bos_token", "eos_token") if self.said[name]}
        self.expected = tuple(self.said["expected_learned"])

    def vocabulary(self):
        """also_add: the control tokens that the template names; those that the tokenizer has stay as they are."""
        control = dict.fromkeys((*self.said["special_tokens_to_add"], *CONTROL.findall(self.source)))
        name = self.said["tokenizer"].rpartition("-")[2]
        try:
            return vocabulary_of(paired(name, self.named, control, self.said["rstrip"]))
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"no registry: {error}")


@pytest.mark.parametrize("number", CASES)
def test_a_reported_case_is_learned_as_it_should_be(number, cases):
    case = Case(cases / number)
    made = Bench(case.source, case.vocabulary()).made(case.row)
    assert (made.texts, made.objection) == (case.expected, None)


@pytest.mark.parametrize("number", CASES)
def test_the_oracle_knows_every_reported_case(number, cases):
    case = Case(cases / number)
    (entry,) = (entry for entry in listing() if entry.source == case.source)
    expected = Template(case.source, case.named, entry.stops, entry.thought).expected(case.row)
    assert {right.texts for right in expected.right} == {case.expected} and expected.refusal is None


def test_no_reported_case_is_left_out(cases):
    assert {folder.name for folder in cases.iterdir()} == set(CASES)
