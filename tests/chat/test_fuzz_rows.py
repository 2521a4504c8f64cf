"""Hostile rows through the whole path, from the line of a file to tokens: a sample or an error of the row."""

import json
import math
import random
import time

import pytest

from dist_sft.chat.conversation import EncodedSample
from dist_sft.chat.encode import Encoder
from dist_sft.chat.fields import CHANGES_LEARNING, ENCODED, JUDGED, OTHERS, PREFERRED, REASONINGS, SYSTEMS
from dist_sft.chat.formats import FORMATS, parse_row
from dist_sft.chat.recognise import GLAIVE, MAYBE_TURNS, QUESTIONS, TURNS
from dist_sft.config.data import LossWeights
from dist_sft.core.errors import RowError, SftError
from dist_sft.data.readers.base import Values, checked_row, refuse_surrogates
from tests.chat.test_hostile import HAND_MADE, NUMBERS, TURN_KEYS, WORDS, nested

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content | trim }}{% else %}"
    "{{ '<|assistant|>' if m.role == 'assistant' else '<|system|>' }}{{ m.content }}<|end_of_text|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MOST_SECONDS = 10

WAYS = [
    "history",
    "instruction",
    "output",
    "messages",
    "conversations",
    "text",
    "tools",
    "functions",
    "prompt",
    "completion",
    "system",
    "chat_template_kwargs",
    "question",
    "answer",
    "query",
    "answers",
    "input",
    "weight",
    "loss",
    "reasoning",
]
ODD = [
    3,
    0.5,
    True,
    None,
    "",
    "x",
    [],
    {},
    [None],
    [[]],
    [{}],
    [[["a"]]],
    {"a": None},
    b"\xff",
    math.nan,
    math.inf,
    10**400,
    "\ud800",
    "[" * 100_000,
    '{"a": ' * 10_000,
    nested(900, 1),
    ["a", 3],
    [["q", "a", "b"]],
    {"role": ["user"]},
    [{"role": {"a": 1}, "content": "q"}],
    [{"role": "user", "content": [{"type": ["text"], "text": "q"}]}],
    [{"role": "user", "content": {"text": "q"}}],
    "\0",
    "1e999",
    '{"x": NaN}',
    "[Infinity]",
    (1, 2),
    {1: 2},
    range(3),
    [{"from": "gpt"}],
    [{"role": "tool", "content": "r", "tool_call_id": [1]}],
    "<|im_end|>" * 50,
    "\U0010fffc\U0010fffd",
]
ASKED = {"role": "user", "content": "q"}


def of_turn(key, value):
    return {"messages": [ASKED, {"role": "assistant", "content": "a", key: value}]}


MADE = [
    *HAND_MADE,
    *({"instruction": "q", "output": "a", "messages": [ASKED]} | {key: value} for key in WAYS for value in ODD[:12]),
    *(
        {"prompt": "q", "completion": "a", key: value}
        for key in ("history", "system", "tools", "weight")
        for value in ODD
    ),
    *(of_turn(key, value) for key in TURN_KEYS for value in ODD[10:30]),
    *(
        {"messages": [ASKED, {"role": "assistant", "content": "a"}], key: value}
        for key in ("chat_template_kwargs", "tools", "weight", "loss", "system", "train")
        for value in ODD
    ),
    *(
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": value}}]}]}
        for value in ODD
    ),
    *(
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": value}}]}]}
        for value in ODD
    ),
    *({key: value} for key in (*TURNS, *MAYBE_TURNS, *GLAIVE, "text") for value in ODD),
]
"""Rows that somebody thought of: each key of a row, of a turn and of a call with each odd value."""

KEYS = [
    *TURNS,
    *MAYBE_TURNS,
    *GLAIVE,
    *QUESTIONS,
    *(one for said in QUESTIONS.values() for one in said),
    "text",
    "history",
    *SYSTEMS,
    *REASONINGS,
    *CHANGES_LEARNING,
    *ENCODED,
    *JUDGED,
    *PREFERRED,
    *OTHERS,
]
INSIDE = [*TURN_KEYS, "id", "parts", "thought", "text", "input", "output", "toolUse", "functionCall", "properties"]


def value(dice, depth=0):
    """Something that a file of rows may hold."""
    kind = dice.random()
    if depth > 5 or kind < 0.5:
        return dice.choice(WORDS)
    if kind < 0.6:
        return dice.choice(NUMBERS)
    if kind < 0.65:
        return dice.choice(ODD)
    if kind < 0.8:
        return [value(dice, depth + 1) for _ in range(dice.randint(0, 3))]
    return {dice.choice(INSIDE): value(dice, depth + 1) for _ in range(dice.randint(0, 4))}


def spoilt(dice):
    """A good row, of which one value, anywhere in it, is another."""
    row = json.loads(json.dumps(dice.choice(GOOD)))
    place = row
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = dice.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and dice.random() < 0.8:
            place = place[key]
            continue
        place[key] = value(dice, 3)
        if isinstance(place, dict) and dice.random() < 0.2:
            place[dice.choice(INSIDE)] = value(dice, 3)
        return row


CALLS = [{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"x": [1, {"y": "z"}]}}}]
GOOD = [
    {
        "messages": [ASKED, {"role": "assistant", "content": "a", "reasoning_content": "r", "weight": 0.5}],
        "system": "s",
    },
    {
        "messages": [
            ASKED,
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "content": "4", "tool_call_id": "call00001", "name": "f"},
            {"role": "assistant", "content": "four"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "chat_template_kwargs": {"k": [1]},
    },
    {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f"}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "<think>r</think>a"},
        ]
    },
    {"instruction": "q", "input": "i", "output": "a", "history": [["q0", "a0"]], "system": "s"},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]},
        ]
    },
    {
        "messages": [
            {"role": "user", "parts": [{"text": "q"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {}}}]},
        ]
    },
    {"chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>", "system": "SYSTEM: s"},
    {"query": "q", "answers": '[{"name": "f", "arguments": {}}]', "tools": '[{"name": "f"}]'},
    {"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"},
]


@pytest.fixture(scope="module")
def encoders(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    made = []
    for name, source in (("chatml", CHATML), ("plain", PLAIN)):
        (folder / f"{name}.jinja").write_text(source)
        made.append(
            Encoder(
                tiny,
                str(folder / f"{name}.jinja"),
                LossWeights(),
                1 << 16,
                "truncate",
                reasoning_without_place="inline",
            )
        )
    return made


class Rows(Values):
    """Rows as a table's reader has them."""

    def __init__(self, rows):
        self.rows = rows

    def __getitem__(self, i):
        return self.rows[i]

    def where(self, i):
        return f"a.json[{i}]"


def came_of(row, encoder, dice):
    """What became of a row: "sample", or the reason of its error."""
    begin = time.process_time()
    try:
        raw = Rows([row]).read([0])[0]
        if isinstance(raw, RowError):
            raise raw
        row = checked_row(raw.parse(), "a.jsonl:1")
        refuse_surrogates(row, "a.jsonl:1")
        format = dice.choice(["auto", "auto", "auto", *FORMATS])
        columns = dice.choice([{}, {}, {}, {"prompt": "query", "completion": "answers"}, {"messages": "chat.messages"}])
        native = dice.choice([None, encoder.native("parse"), encoder.native("refuse"), encoder.native("text")])
        item = parse_row(row, format, {"bot": "assistant"}, columns, native)
        sample = encoder.encode(item)
        assert isinstance(sample, EncodedSample) and len(sample.tokens) == len(sample.weights) and sample.supervised
        assert all(map(math.isfinite, sample.weights.tolist()))
        encoder.spelled(item)
        assert encoder.preview(item)
        came = "sample"
    except RowError as error:
        assert error.reason and len(str(error)) < 10_000
        assert all(letter.isprintable() or letter == "\n" for letter in str(error)), str(error)[:500]
        came = error.reason
    assert time.process_time() - begin < MOST_SECONDS
    return came


def test_there_are_two_hundred_of_them():
    assert len(MADE) > 200


def test_hand_made_rows_are_samples_or_errors_of_the_row(encoders):
    seen = set()
    for number, row in enumerate(MADE):
        for encoder in encoders:
            seen.add(came_of(row, encoder, random.Random(0 if number % 2 else number)))
    assert {"sample", "bad_row", "wrong_role", "key_not_read"} <= seen


def test_good_rows_are_samples(encoders):
    for row in GOOD:
        item = parse_row(row, native=encoders[0].native("parse"))
        assert encoders[0].encode(item).supervised


def test_random_rows_are_samples_or_errors_of_the_row(encoders, request):
    count, seen = (20_000 if request.config.getoption("--soak") else 1_500), {}
    for number in range(count):
        dice = random.Random(number)
        row = spoilt(dice) if number % 2 else {dice.choice(KEYS): value(dice) for _ in range(dice.randint(1, 4))}
        came = came_of(row, encoders[number % 4 // 2], dice)
        seen[came] = seen.get(came, 0) + 1
    assert seen["sample"] > count // 40 and {"bad_row", "wrong_role"} <= seen.keys()


@pytest.mark.parametrize("key", ["weight", "loss_weight"])
@pytest.mark.parametrize("weight", [10**400, 1e39, -1, math.nan, math.inf, [1], "1", 1e6])
def test_a_weight_that_no_loss_can_hold_is_refused(key, weight):
    with pytest.raises(RowError, match=key) as caught:
        parse_row(of_turn(key, weight))
    assert isinstance(caught.value, SftError) and len(str(caught.value)) < 1000
