"""The demo's chats: system prompts that demand a style, several turns, answers that a program can check.

    (seed, count, held_out) -> Row[count] -> JSONL in OpenAI's `messages` format

Row i is a pure function of the seed, i and the rows before it. A held-out row shares no question with any training
row, of any seed (see `questions`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from dist_sft.core.files import atomic
from dist_sft.core.seeds import key
from dist_sft.demo.questions import SINGLE, Question, some_words

Turn = dict[str, str]

STYLES: dict[str, Callable[[str], str]] = {
    "Answer in upper case.": str.upper,
    "Answer in quotes.": lambda answer: f'"{answer}"',
    "Shout your answer.": lambda answer: f"{answer}!",
}
"""System prompts that change every answer, and how."""

PLAIN = (None, None, "You are a helpful assistant.", "Answer briefly.")
"""System prompts that change nothing; None: no system prompt."""

STYLED = ("copy", "last", "opposite", "category")
"""Kinds of question whose answers a style can change."""

KINDS = (*SINGLE, "style", "style", "chat", "memory", "memory")
"""Kinds of row, in the order in which they take turns."""

TRIES = 1000
"""Draws of one row until it is on the right side and new; a kind with few questions runs out of held-out rows."""


@dataclass(frozen=True, slots=True)
class Row:
    """One chat.

    kind       what it asks for: one of KINDS
    messages   in OpenAI's format; the last is the assistant's
    questions  texts in it that are held out or not
    """

    kind: str
    messages: tuple[Turn, ...]
    questions: tuple[Question, ...]

    @property
    def prompt(self) -> list[Turn]:
        """The messages before the last answer."""
        return list(self.messages[:-1])

    @property
    def answer(self) -> str:
        """The right last answer."""
        return self.messages[-1]["content"]


def conversations(seed: int, count: int, held_out: bool) -> list[Row]:
    """Rows for training, or rows for evaluation: these have different prompts and no question of the former."""
    rows: dict[object, Row] = {}
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        for row in _candidates(seed, index, kind):
            name = json.dumps(row.prompt) if held_out else index
            if name not in rows and all(question.held_out == held_out for question in row.questions):
                rows[name] = row
                break
    return list(rows.values())


def write(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines with the keys `messages` and `kind`."""
    with atomic(path) as file:
        for row in rows:
            file.write(json.dumps({"messages": row.messages, "kind": row.kind}).encode() + b"\n")


def _candidates(seed: int, index: int, kind: str) -> Iterator[Row]:
    for attempt in range(TRIES):
        random = Random(key(seed, "demo row", index, attempt))
        if kind == "style":
            yield _styled(random)
        elif kind == "chat":
            names = random.sample(tuple(SINGLE), 2)
            yield _row(kind, _plain(random), [SINGLE[name](random) for name in names])
        elif kind == "memory":
            yield _memory(random)
        else:
            yield _row(kind, _plain(random), [SINGLE[kind](random)])


def _styled(random: Random) -> Row:
    """One or two questions, all answered in the style that the system prompt demands."""
    system = random.choice(tuple(STYLES))
    asked = [SINGLE[name](random) for name in random.sample(STYLED, random.randint(1, 2))]
    return _row("style", system, [Question(question.text, STYLES[system](question.answer)) for question in asked])


def _memory(random: Random) -> Row:
    """A list of words, then questions about it."""
    words = some_words(random)
    listed = Question(random.choice(("Remember {}", "Here are {}")).format(f'"{",".join(words)}"'), "OK")
    asked = {
        "And the last?": words[-1],
        "And the last in capitals?": words[-1].upper(),
        "And how many?": str(len(words)),
    }
    follow_ups = [Question(text, asked[text]) for text in random.sample(tuple(asked), 3)]
    messages = _row("memory", _plain(random), [listed, *follow_ups]).messages
    return Row("memory", messages, (listed,))


def _plain(random: Random) -> str | None:
    return random.choice(PLAIN)


def _row(kind: str, system: str | None, asked: Sequence[Question]) -> Row:
    turns = [{"role": "system", "content": system}] if system else []
    for question in asked:
        turns.append({"role": "user", "content": question.text})
        turns.append({"role": "assistant", "content": question.answer})
    return Row(kind, tuple(turns), tuple(asked))
