"""The demo's chats are seeded, checkable, and held-out questions never reach training."""

import json
from collections import Counter

import pytest

from dist_sft.demo import dataset
from dist_sft.demo.dataset import KINDS, STYLES, Row, conversations
from dist_sft.demo.words import CATEGORIES, OPPOSITES, WORDS


@pytest.fixture(scope="module")
def train() -> list[Row]:
    return conversations(seed=0, count=3000, held_out=False)


@pytest.fixture(scope="module")
def held_out() -> list[Row]:
    return conversations(seed=0, count=256, held_out=True)


def test_rows_depend_on_the_seed_alone(held_out: list[Row]):
    assert conversations(0, 256, held_out=True) == held_out
    assert conversations(1, 256, held_out=True) != held_out


def test_more_rows_begin_with_the_same_rows(held_out: list[Row]):
    assert conversations(0, 40, held_out=True) == held_out[:40]


@pytest.mark.parametrize("other_seed", [0, 1, 7])
def test_no_question_of_a_held_out_row_is_in_any_training_row(held_out: list[Row], other_seed: int):
    train = conversations(other_seed, 2000, held_out=False)
    learned = {question.text for row in train for question in row.questions}
    asked = {question.text for row in held_out for question in row.questions}
    assert learned and asked and not learned & asked


def test_the_questions_are_the_user_turns_but_for_follow_ups(train: list[Row], held_out: list[Row]):
    for row in [*train, *held_out]:
        turns = [turn["content"] for turn in row.messages if turn["role"] == "user"]
        assert [question.text for question in row.questions] == (turns[:1] if row.kind == "memory" else turns)


def test_held_out_prompts_differ_and_cover_every_kind(held_out: list[Row]):
    assert len({json.dumps(row.prompt) for row in held_out}) == len(held_out) > 240
    count = Counter(row.kind for row in held_out)
    assert set(count) == set(KINDS) and min(count.values()) >= 10


def test_rows_are_chats_that_alternate_and_end_with_the_answer(train: list[Row]):
    for row in train:
        roles = [turn["role"] for turn in row.messages if turn["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert [*row.prompt, {"role": "assistant", "content": row.answer}] == list(row.messages)
    assert any(row.messages[0]["role"] == "system" for row in train)


def test_an_answer_follows_from_its_question(train: list[Row]):
    opposites = {**dict(OPPOSITES), **{b: a for a, b in OPPOSITES}}
    kinds = {word: kind for kind, words in CATEGORIES.items() for word in words}
    right = {
        "copy": lambda words: words[0],
        "capitals": lambda words: words[0].upper(),
        "last": lambda words: words[-1],
        "opposite": lambda words: opposites[words[0]],
        "category": lambda words: kinds[words[0]],
        "successor": lambda words: str(int(words[0]) + 1),
        "count": lambda words: str(len(words)),
        "sort": lambda words: ",".join(sorted(words)),
    }
    seen = set()
    for row in train:
        if row.kind in right:
            words = row.prompt[-1]["content"].split('"')[1].split(",")
            assert row.answer == right[row.kind](words), row
            seen.add(row.kind)
    assert seen == set(right)


def test_a_system_prompt_changes_the_style_of_every_answer(train: list[Row]):
    shapes = {
        "Answer in upper case.": str.isupper,
        "Answer in quotes.": lambda text: text[0] == text[-1] == '"',
        "Shout your answer.": lambda text: text.endswith("!"),
    }
    assert set(shapes) == set(STYLES)
    styled = [row for row in train if row.kind == "style"]
    for row in styled:
        shape = shapes[row.messages[0]["content"]]
        assert all(shape(turn["content"]) for turn in row.messages if turn["role"] == "assistant")
    assert {row.messages[0]["content"] for row in styled} == set(shapes)


def test_memory_is_asked_about_a_list_that_came_before(train: list[Row]):
    for row in train:
        if row.kind == "memory":
            words = row.questions[0].text.split('"')[1].split(",")
            turns = [turn["content"] for turn in row.messages if turn["role"] != "system"][2:]
            right = {
                "And the last?": words[-1],
                "And the last in capitals?": words[-1].upper(),
                "And how many?": str(len(words)),
            }
            assert dict(zip(turns[::2], turns[1::2], strict=True)) == right


def test_the_world_has_no_word_with_two_meanings():
    assert len(set(WORDS)) == len(WORDS)


def test_rows_are_written_as_openai_messages(tmp_path, held_out: list[Row]):
    dataset.write(tmp_path / "rows.jsonl", held_out)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [line["messages"] for line in lines] == [list(row.messages) for row in held_out]
