"""Chats to measure with: several turns, lognormal lengths, about 600 tokens a row. The text is Python's own manual."""

import json
import pydoc_data.topics
import random
import re
from pathlib import Path

SPREAD = 0.7
"""Sigma of the logarithm of a chat's words."""


def write_chats(path: Path, rows: int, mean_words: int = 360, seed: int = 0, questions: float = 0.4) -> Path:
    """A JSONL file of `messages`, the same for the same arguments; not written again if it is there.

    mean_words: of a chat; 360 make about 600 tokens. questions: how long a question is, against an answer.
    """
    if path.exists():
        return path
    dice, words = random.Random(seed), _words()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        for _ in range(rows):
            file.write(json.dumps({"messages": _chat(dice, words, mean_words, questions)}) + "\n")
    partial.rename(path)
    return path


def _chat(dice: random.Random, words: list[str], mean_words: int, questions: float) -> list[dict[str, str]]:
    turns = dice.choice((2, 2, 4, 4, 6, 8))
    budget = mean_words * dice.lognormvariate(-(SPREAD**2) / 2, SPREAD)
    shares = [dice.random() * (1 if turn % 2 else questions) + 0.05 for turn in range(turns)]
    messages = [{"role": "system", "content": _text(dice, words, 12)}] if dice.random() < 0.3 else []
    for turn, share in enumerate(shares):
        text = _text(dice, words, max(3, round(budget * share / sum(shares))))
        messages.append({"role": "assistant" if turn % 2 else "user", "content": text})
    return messages


def _text(dice: random.Random, words: list[str], count: int) -> str:
    begin = dice.randrange(len(words) - count)
    return " ".join(words[begin : begin + count]).strip()


def _words() -> list[str]:
    """The manual's text, its line breaks kept with the word before them."""
    text = "\n\n".join(pydoc_data.topics.topics.values())
    return re.findall(r"\S+\n*", re.sub(r"\n[ \t]+", "\n", text))
