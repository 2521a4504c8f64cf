"""Single questions with one right answer: random choices -> (question, answer).

A question is held out from training by a hash of its own text. So no seed, no system prompt and no turn before or
after it can carry a held-out question into the training rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dist_sft.core.seeds import key
from dist_sft.demo.words import CATEGORIES, NOUNS, NUMBERS, OPPOSITES, WORDS

HELD_OUT_SHARE = 8
"""One question in so many is held out."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a user asks, and the only right answer to it."""

    text: str
    answer: str

    @property
    def held_out(self) -> bool:
        return key(0, f"demo question {self.text}") % HELD_OUT_SHARE == 0


def copy(random: Random) -> Question:
    """Say a word."""
    word = random.choice(WORDS)
    return _phrase(random, word, word, "Say {}", "Repeat {}", "Copy {}", "Write {}")


def capitals(random: Random) -> Question:
    """Write a word in capital letters."""
    word = random.choice(WORDS)
    return _phrase(random, word, word.upper(), "Capitals of {}", "Write {} in capitals", "Turn {} into capitals")


def last(random: Random) -> Question:
    """Find the last word of a list."""
    words = some_words(random)
    return _phrase(random, ",".join(words), words[-1], "Last of {}", "What is last in {}?")


def opposite(random: Random) -> Question:
    """Know the opposite of an adjective."""
    word, other = random.sample(random.choice(OPPOSITES), 2)
    return _phrase(
        random,
        word,
        other,
        "Opposite of {}",
        "What is not {}?",
        "Give the opposite of {}",
        "What is the opposite of {}?",
    )


def category(random: Random) -> Question:
    """Know what kind of thing a noun names."""
    kind = random.choice(tuple(CATEGORIES))
    return _phrase(
        random,
        random.choice(CATEGORIES[kind]),
        kind,
        "Kind of {}",
        "What is {}?",
        "What kind is {}?",
        "Which group has {}?",
    )


def successor(random: Random) -> Question:
    """Count on by one."""
    number = random.choice(NUMBERS)
    return _phrase(random, str(number), str(number + 1), "After {}", "What is after {}?", "Add one to {}", "Next of {}")


def count(random: Random) -> Question:
    """Count the words of a list."""
    words = some_words(random)
    return _phrase(random, ",".join(words), str(len(words)), "Count {}", "How many are {}?")


def sort(random: Random) -> Question:
    """Put two words into the order of the alphabet."""
    words = random.sample(NOUNS, 2)
    return _phrase(random, ",".join(words), ",".join(sorted(words)), "Sort {}", "Put {} in order")


SINGLE: dict[str, Callable[[Random], Question]] = {
    "copy": copy, "capitals": capitals, "last": last, "opposite": opposite, "category": category,
    "successor": successor, "count": count, "sort": sort,
}  # fmt: skip


def some_words(random: Random) -> list[str]:
    """Two to four different nouns."""
    return random.sample(NOUNS, random.randint(2, 4))


def _phrase(random: Random, subject: str, answer: str, *phrasings: str) -> Question:
    return Question(random.choice(phrasings).format(f'"{subject}"'), answer)
