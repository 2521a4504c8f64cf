"""What of a row is not as at inference is said, with the argument that makes it so; what is, is not mentioned."""

from dataclasses import replace

import pytest

from dist_sft.chat.encode import Encoder
from dist_sft.chat.formats import parse_row
from dist_sft.chat.templates import ChatTemplate
from dist_sft.config.data import LossWeights

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
THOUGHT = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
PLAIN = HEAD + "{{ m.content }}" + TAIL + "{% endif %}"
EMPTY = HEAD + THOUGHT + (
    "{% elif m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}" + TAIL
    + "{% if thinks is defined and not thinks %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)  # fmt: skip
OPENS = HEAD + THOUGHT + "{% endif %}{{ m.content }}" + TAIL + "<think>\n{% endif %}"
RETURNS = (
    HEAD + "{% if m.reasoning_content %}{{ m.reasoning_content }}<|im_end|>\n<|im_start|>assistant\n{% endif %}"
    "{{ m.content }}{{ '<|end_of_text|>' if m.role == 'assistant' and loop.last else '<|im_end|>' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SINGLE = [("user", "q"), ("assistant", "a")]
MULTI = [*SINGLE, ("user", "r"), ("assistant", "b")]


@pytest.fixture
def said(tiny):
    """A function: template, turns as (role, content, [reasoning]), loss, settings eos -> what is said of that row."""

    def unlike(template, row, settings=None, eos="<|im_end|>", **loss):
        messages = [dict(zip(("role", "content", "reasoning_content"), turn, strict=False)) for turn in row]
        encoder = Encoder(
            replace(tiny, special_tokens={"eos_token": eos}),
            ChatTemplate("t", template),
            LossWeights(**loss),
            1 << 16,
            "error",
            template_kwargs=settings,
        )
        return sorted(encoder.unlike_inference(parse_row({"messages": messages})))

    return unlike


@pytest.mark.parametrize("turns", [SINGLE, MULTI])
def test_nothing_is_said_where_inference_is_as_training_was(said, turns):
    assert said(PLAIN, turns) == []


def test_an_empty_thought_that_inference_does_not_write_is_said_with_the_argument_that_writes_it(said):
    line = (
        "before an answer stands '<think>\\n\\n</think>\\n\\n' in training and nothing at inference; the same with "
        "thinks=False as an argument of apply_chat_template"
    )
    assert said(EMPTY, SINGLE) == said(EMPTY, MULTI) == [line]
    assert said(EMPTY, SINGLE, {"thinks": False}) == []
    assert said(EMPTY, [SINGLE[0], ("assistant", "a", "t")]) == []


def test_a_thought_that_only_inference_opens_is_said(said):
    assert said(OPENS, SINGLE) == ["before an answer stands nothing in training and '<think>\\n' at inference"]
    assert said(OPENS, [SINGLE[0], ("assistant", "a", "t")]) == []


def test_what_is_not_learned_is_not_looked_at(said):
    assert said(EMPTY, [SINGLE[0], ("assistant", "a", "t")], reasoning=False) == []
    assert said(EMPTY, SINGLE, empty_thought=True) == []
    assert said(RETURNS, MULTI, eos="<|end_of_text|>", turns="last") == []


def test_an_end_on_which_generation_does_not_stop_is_said_of_earlier_answers(said):
    assert said(RETURNS, SINGLE, eos="<|end_of_text|>") == []
    (line,) = said(RETURNS, MULTI, eos="<|end_of_text|>")
    assert line.startswith("an answer ends with <|im_end|>, on which generation does not stop")


LOOKS_AHEAD = HEAD + "{% if m.role == 'user' and loop.last %}[last]{% endif %}{{ m.content }}" + TAIL + "{% endif %}"


def test_turns_that_are_written_otherwise_once_others_follow_are_said(said):
    """At inference the question is the last turn, in training an answer follows it."""
    (line,) = said(LOOKS_AHEAD, SINGLE)
    assert line.startswith("the turns before an answer are not written as at inference")
    by_question = LOOKS_AHEAD.replace(
        "loop.last", "m.content == (messages | selectattr('role', 'eq', 'user') | list)[-1].content"
    )
    assert said(by_question, SINGLE) == []
    assert said(by_question, MULTI) == [line] and said(by_question, MULTI, turns="last") == []
