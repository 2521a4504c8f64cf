"""What a model answers to held-out rows, and how many answers are exactly right.

model folder, Row[N] -> Answer[N] -> {kind: share of exact matches}
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dist_sft.demo.dataset import Row

BATCH = 64
LONGEST = 16
"""Tokens in an answer, at most; the right ones are shorter."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to the prompt of a row, without special tokens."""

    row: Row
    text: str

    @property
    def right(self) -> bool:
        return self.text == self.row.answer


def ask(folder: Path, rows: Sequence[Row]) -> list[Answer]:
    """Greedy answers of the model in a folder, in the order of the rows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)  # its types refuse .to()
    model.to(device).eval()
    answers: list[Answer] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        chats = [words.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=False) for row in batch]
        prompts = words(chats, add_special_tokens=False, padding=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            tokens = model.generate(**prompts, do_sample=False, max_new_tokens=LONGEST)
        texts = words.batch_decode(tokens[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [Answer(row, text) for row, text in zip(batch, texts, strict=True)]
    return answers


def score(answers: Iterable[Answer]) -> float:
    """Share of exact matches, 0 to 1."""
    right = [answer.right for answer in answers]
    return sum(right) / len(right)


def score_by_kind(answers: Iterable[Answer]) -> dict[str, float]:
    """Share of exact matches for each kind of row."""
    by_kind: dict[str, list[Answer]] = {}
    for answer in answers:
        by_kind.setdefault(answer.row.kind, []).append(answer)
    return {kind: score(group) for kind, group in by_kind.items()}
