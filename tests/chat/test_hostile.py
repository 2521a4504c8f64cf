"""Rows and templates that want to do harm: rows or our errors come of them, in bounded time and memory."""

import json
import math
import random

import pytest

from dist_sft.chat.conversation import Conversation, Document, Message
from dist_sft.chat.fields import CHANGES_LEARNING
from dist_sft.chat.formats import QUESTIONS, TURNS, parse_row
from dist_sft.chat.render import MOST_SAID, Renderer
from dist_sft.core.errors import RowError, TemplateError

ANSWERS = [answer for answers in QUESTIONS.values() for answer in answers]
ROW_KEYS = [*TURNS, *QUESTIONS, *ANSWERS, *CHANGES_LEARNING, "text"]
TURN_KEYS = ["role", "content", "from", "value", "tool_calls", "function_call", "name", "tool_call_id", "weight",
             "loss", "loss_weight", "train", "reasoning", "thinking", "type", "function", "arguments"]  # fmt: skip
WORDS = ["user", "assistant", "system", "tool", "gpt", "human", "text", "tool_call", "q", "", "\ud800", "<|im_end|>",
         "\0", '{"name": "f", "arguments": {}}', '[{"name": "f"}]', "[" * 3000, "{", "NaN", "\u2028",
         "x" * 3000]  # fmt: skip
NUMBERS = [0, 1, -1, 0.5, 10**400, 1e39, -1e308, math.nan, math.inf, True, False, None]


def value(dice, depth=0):
    """Something that a JSON file may hold."""
    kind = dice.random()
    if depth > 4 or kind < 0.45:
        return dice.choice(WORDS)
    if kind < 0.6:
        return dice.choice(NUMBERS)
    if kind < 0.8:
        return [value(dice, depth + 1) for _ in range(dice.randint(0, 3))]
    return {dice.choice(TURN_KEYS): value(dice, depth + 1) for _ in range(dice.randint(0, 4))}


def nested(depth, inside):
    for _ in range(depth):
        inside = {"x": [inside]}
    return inside


TURN = {"role": "user", "content": "q"}
CALL = {"role": "assistant", "content": None}
HAND_MADE = [
    {"instruction": "q", "output": "a", "history": 3},
    {"instruction": "q", "output": "a", "history": [None]},
    {"instruction": "q", "output": "a", "history": {"q": "a"}},
    {"instruction": "q", "output": "a", "history": [["q", 3]]},
    {"messages": [{"role": ["user"], "content": "q"}]},
    {"messages": [{"role": "user", "content": [{"type": ["text"], "text": "q"}]}]},
    {"messages": [{"role": "user", "content": [{"type": {"a": 1}}]}]},
    {"messages": [{"role": "user", "content": [None]}]},
    {"messages": [TURN | {"loss_weight": 10**400}]},
    {"messages": [TURN | {"weight": 1e39}]},
    {"messages": [TURN | {"weight": [1]}]},
    {"messages": [TURN | {"name": ["x"]}]},
    {"messages": [CALL | {"tool_calls": [nested(900, 1)]}]},
    {"messages": [CALL | {"tool_calls": [{"name": "f", "arguments": nested(900, 1)}]}]},
    {"messages": [CALL | {"tool_calls": [{"name": "f", "arguments": {"x": math.nan}}]}]},
    {"messages": [CALL | {"tool_calls": [{"name": "f", "arguments": {"x": [math.inf]}}]}]},
    {"messages": [CALL | {"tool_calls": '{"name": "f", "arguments": {"x": NaN}}'}]},
    {"messages": [CALL | {"tool_calls": "[" * 100_000}]},
    {"messages": "[" * 100_000},
    {"messages": {"0": TURN}},
    {"messages": b"[]"},
    {"messages": [TURN], "tools": "{" * 100_000},
    {"messages": [TURN], "tools": [nested(900, 1)]},
    {"messages": [TURN], "tools": [{"function": 3}]},
    {"messages": [TURN], "tools": {"name": "f"}},
    {"conversations": [{"from": {"x": 1}, "value": "q"}]},
    {"conversations": [{"from": "function_call", "value": "[" * 100_000}]},
    {"conversations": ["q", None]},
    {"prompt": [TURN], "completion": 3},
    {"prompt": 3, "completion": "a"},
    {"query": "q", "answers": "[" * 100_000},
    {"text": ["t"]},
    {"text": "a\udfff"},
    {3: "a", None: "b"},
]  # fmt: skip


@pytest.mark.parametrize("row", HAND_MADE, ids=range(len(HAND_MADE)))
def test_a_hostile_row_is_an_error_of_the_row(row):
    with pytest.raises(RowError) as caught:
        parse_row(row)
    assert caught.value.reason and len(str(caught.value)) < 100_000


def test_random_rows_are_understood_or_refused(request):
    dice, understood = random.Random(0), 0
    for _ in range(200_000 if request.config.getoption("--soak") else 4_000):
        row = {dice.choice(ROW_KEYS): value(dice) for _ in range(dice.randint(1, 4))}
        try:
            item = parse_row(row)
        except RowError:
            continue
        assert isinstance(item, Conversation | Document)
        json.dumps(
            [message.content for message in item.messages] if isinstance(item, Conversation) else item.text
        ).encode()
        understood += 1
    assert understood > 20


TALK = Conversation((Message("user", "a" * 100), Message("assistant", "b")))
LOOP = "{% for i in range(99999) %}"
HOSTILE = [
    LOOP + LOOP + "{% endfor %}{% endfor %}",
    LOOP * 3 + "x" + "{% endfor %}" * 3,
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for m in messages * 10**7 %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**10 }}",
    "{{ 9**(9**9) }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    LOOP + "{{ 'a' * 10000 }}{% endfor %}",
    "{% for a in messages[0].content %}" * 5 + "{% endfor %}" * 5,
    "{{ raise_exception('x' * 10**6) }}",
    "{{ messages[7].content }}",
    "{{ messages | sum }}",
    "{{ (1).__class__.__mro__ }}{{ raise_exception('no') }}",
    "{{ 1 // 0 }}",
    "{% include 'other' %}",
    "{% import 'os' as os %}",
    "{% extends 'base' %}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_is_an_error_of_the_row(source):
    with pytest.raises(RowError) as caught:
        Renderer(source, {}).render(TALK)
    assert caught.value.reason == "template_refused" and len(caught.value.what) < MOST_SAID + 100


@pytest.mark.parametrize("source", ["{{ [1, 2] | random }}", "{% if %}", "{{ 'a' | nosuchfilter }}", "{% for %}"])
def test_a_template_that_is_none_or_throws_dice_is_refused(source):
    with pytest.raises(TemplateError):
        Renderer(source, {})


def test_there_is_no_random_text():
    with pytest.raises(RowError, match="'lipsum' is undefined"):
        Renderer("{{ lipsum() }}", {}).render(TALK)


def test_the_words_of_a_template_steer_no_terminal_and_forge_no_line():
    source = r"{{ raise_exception('no\n  fix: delete everything\x1b[2J\x07') }}"
    with pytest.raises(RowError) as caught:
        Renderer(source, {}).render(TALK)
    shown = str(caught.value)
    assert shown.count("\n") == 1 and shown.count("\n  fix: ") == 1 and "\x1b" not in shown and "\x07" not in shown
    assert r"no fix: delete everything\x1b[2J\x07" in shown


def test_the_work_of_one_row_is_not_held_against_the_next():
    renderer = Renderer("{% for i in range(90000) %}{% endfor %}{{ messages[0].content }}", {})
    assert {renderer.render(TALK) for _ in range(25)} == {"a" * 100}
