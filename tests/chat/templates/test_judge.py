"""The oracle says what is right, and the judge finds what is wrong: else a table without faults would say nothing."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.chat.templates.conversations import KINDS, rows
from tests.chat.templates.judge import Made, fault_of, forgery_in
from tests.chat.templates.oracle import Expected, Learned, Template

TEXT = "<|user|>q<|end|><|assistant|>a<|end|>"
RIGHT = Expected((Learned(TEXT + "<|assistant|>", ("a<|end|>",), len(TEXT)),), None)
MADE = Made(TEXT, ("a<|end|>",), ("<|user|>", "<|end|>", "<|assistant|>", "<|end|>"), None)

CHATML = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ROLES = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
ASKED = ROLES + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
HEADER = """\
{% for m in messages %}<|start|>{{ m.role }}{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>{{ m.content }}
{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
ONCE = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
THINKS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
EMPTY = CHATML.replace("{{ m.content", "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}{{ m.content")
TWICE = CHATML.replace("<|im_end|>\n", "<|END_RESPONSE|><|END_OF_TURN|>\n")
OTHER = ASKED.replace("<|assistant|>{%", "<|assistant|><|START_THINKING|>{%").replace(
    "{{ m.content }}", "{{ '<|START_RESPONSE|>' if m.role == 'assistant' }}{{ m.content }}<|END|>"
)
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}" + CHATML
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML


def learned(source, stops, kind):
    controls = tuple(re.findall(r"<\|\w+\|>", source))
    expected = Template(source, {}, stops, controls=controls).expected(rows("", "<|im_end|>")[kind])
    return [list(right.texts) for right in expected.right] or expected.refusal


@pytest.mark.parametrize(
    ("source", "stops", "kind", "right"),
    [
        (CHATML, ["<|im_end|>"], "single", [["Answer bravo: eleven.<|im_end|>"]]),
        (CHATML, ["<|im_end|>"], "weights", [["Answer bravo two,\nwith lines.<|im_end|>"]]),
        (CHATML, ["<|im_end|>"], "blanks", [["\n Answer bravo one.  \n\n<|im_end|>", " Answer bravo two. <|im_end|>"]]),
        (ASKED, ["<|user|>"], "in_a_row", "the template writes nothing on which generation stops behind messages[2]"),
        (ASKED, ["<|user|>"], "single", [["Answer bravo: eleven.<|user|>"]]),
        (HEADER, ["<|end|>", "<|return|>"], "multi", [[
            "<|channel|>final<|message|>Answer bravo one.<|end|>",
            "<|channel|>final<|message|>Answer bravo two,\nwith lines.<|end|>",
            "<|channel|>final<|message|>Answer bravo three.<|return|>"]]),
        (ONCE, ["<|im_end|>"], "single", [["Answer bravo: eleven.<|im_end|>"]]),
        (THINKS, ["<|im_end|>"], "single", [["Answer bravo: eleven.<|im_end|>"]]),
        (EMPTY, ["<|im_end|>"], "blanks", [["\n Answer bravo one.  \n\n<|im_end|>", " Answer bravo two. <|im_end|>"]]),
        (TWICE, ["<|END_RESPONSE|>", "<|END_OF_TURN|>"], "system",
         [["Answer bravo one.<|END_RESPONSE|><|END_OF_TURN|>"]]),
        (OTHER, ["<|END|>"], "single", [["<|START_RESPONSE|>Answer bravo: eleven.<|END|>"]]),
        (DEFAULT, ["<|im_end|>"], "assistant_first", [["Greeting papa.<|im_end|>", "Answer bravo one.<|im_end|>"]]),
        (PICKY, ["<|im_end|>"], "system", "the template raises: no system"),
        (CHATML, ["<|im_end|>"], "tool_call", "the template drops 'get_weather_xq' of the tools"),
        (CHATML, ["<|im_end|>"], "reasoning", "the template drops 'Thought delta one.' of messages[1]"),
        (CHATML, ["<|im_end|>"], "think_inline",
         [["<think>\nThought delta one.\n</think>\n\nAnswer bravo one.<|im_end|>"]]),
    ],
    ids=["plain", "weights", "blanks", "no stop between", "stop of the next role", "header", "written once",
         "prompt opens a thought", "empty thought", "two stops", "parts in a token", "first behind a default",
         "raises", "no tools", "no thought", "thought inline"],
)  # fmt: skip
def test_the_oracle_says_of_a_simple_template_what_everybody_can_see(source, stops, kind, right):
    assert learned(source, tuple(stops), kind) == right


def test_each_text_of_a_row_stands_once_in_it():
    assert len(KINDS) >= 18
    for kind, row in rows("zulu", "yankee").items():
        whole = Template(CHATML, {}, ("<|im_end|>",)).render(row["messages"])
        contents = [turn["content"] for turn in row["messages"] if isinstance(turn["content"], str)]
        assert all(whole.count(text.strip()) == 1 for text in contents if text.strip()), kind


def test_what_is_right_has_no_fault_though_the_next_prompt_is_left_out():
    assert fault_of(MADE, RIGHT) is None
    assert fault_of(replace(MADE, whole=TEXT + "<|assistant|>"), RIGHT) is None


@pytest.mark.parametrize(
    "texts",
    [("a",), ("a<|end|><|assistant|>",), ("<|assistant|>a<|end|>",), (), ("q", "a<|end|>")],
    ids=["stop not learned", "what follows learned", "prompt learned", "nothing learned", "question learned"],
)
def test_other_texts_are_a_fault(texts):
    assert "not ['a<|end|>']" in fault_of(replace(MADE, texts=texts), RIGHT)


def test_another_text_around_what_is_learned_is_a_fault():
    assert "the text is" in fault_of(replace(MADE, whole=TEXT.replace("q", "p")), RIGHT)
    assert "the text is" in fault_of(replace(MADE, whole=TEXT.removesuffix("<|end|>")), RIGHT)


def test_a_row_that_the_template_cannot_hold_must_not_be_learned():
    assert "drops" in fault_of(MADE, Expected((), "the template drops 'x'"))


def test_a_control_token_that_a_user_typed_is_a_fault():
    bench = SimpleNamespace(controls_of=lambda whole: (*MADE.controls, "<|assistant|>"))
    assert forgery_in(MADE, RIGHT, bench) is None
    forged = replace(MADE, controls=("<|user|>", "<|end|>", *MADE.controls[1:]))
    assert "its control tokens are" in forgery_in(forged, RIGHT, bench)
