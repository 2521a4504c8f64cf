"""A tiny model that has two chats by heart, exported by our own code and served by transformers.

listing ─ Encoder ─> two chats as samples ─ learn by heart, save_full, save_tokenizer ─> folder ─ generate ─> tokens
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import chat_template_utils

from dist_sft.chat.conversation import EncodedSample
from dist_sft.chat.encode import Encoder
from dist_sft.chat.formats import parse_row
from dist_sft.chat.render import TODAY
from dist_sft.chat.templates import ChatTemplate
from dist_sft.config.data import LossWeights
from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import RowError
from dist_sft.model.saved import save_full
from dist_sft.model.tokenizer import save_tokenizer, vocabulary_of
from tests.chat.templates.rowtexts import with_arguments_as_text, with_parts

TO_SPARE = 8
"""Tokens that generation may write beyond an answer, and must not."""
STEPS, NEARLY_SURE = 400, 0.02
"""Of learning by heart: most steps, and the largest loss of a token at which it ends."""
SETTINGS = ({}, {"enable_thinking": False}, {"thinking": False})
"""data.template_kwargs, to be given to apply_chat_template as well."""

_TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "Weather of a city", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "Its name"}},
        "required": ["city"]}}}]  # fmt: skip
_CALL = {"id": "a1B2c3D4e", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def rows(tools: bool, thoughts: bool) -> list[dict[str, Any]]:
    """Two chats: one answer; and a call with its result and an answer, or two answers without tools."""

    def says(content: str, thought: str, **more: Any) -> dict[str, Any]:
        said = {"role": "assistant", "content": content, **more}
        return said | ({"reasoning_content": thought} if thoughts else {})

    first = [{"role": "user", "content": "Name a prime."}, says("It is eleven.", "Above ten.")]
    asked = {"role": "user", "content": "Weather in Oslo?"}
    if tools:
        result = {"role": "tool", "tool_call_id": "a1B2c3D4e", "name": "weather", "content": '{"sky": "grey"}'}
        second = [asked, says("", "I must look.", tool_calls=[_CALL]), result, says("Grey, all day.", "So it is grey.")]
        return [{"messages": first, "tools": _TOOLS}, {"messages": second, "tools": _TOOLS}]
    second = [
        asked,
        says("Grey, all day.", "North."),
        {"role": "user", "content": "And Rome?"},
        says("Blue.", "South."),
    ]
    return [{"messages": first}, {"messages": second}]


@dataclass(frozen=True)
class Answer:
    """chat: which of the two; turn: index of its message; tokens[first:last] are its learned ones."""

    chat: int
    turn: int
    first: int
    last: int


@dataclass(frozen=True)
class Lesson:
    """Two chats under one template.

    settings  what the template gets, in training and at inference
    unlike    what `check` says of inference with it
    """

    tokenizer: Any
    encoder: Encoder
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    samples: list[EncodedSample]
    unlike: frozenset[str]

    @property
    def answers(self) -> list[Answer]:
        found = []
        for chat, (row, sample) in enumerate(zip(self.rows, self.samples, strict=True)):
            turns = [i for i, turn in enumerate(row["messages"]) if turn["role"] == "assistant"]
            learned = [0, *(sample.weights > 0).astype(int).tolist(), 0]
            firsts = [t for t in range(len(sample)) if learned[t] < learned[t + 1]]
            lasts = [t for t in range(1, len(sample) + 1) if learned[t] > learned[t + 1]]
            found += [Answer(chat, *where) for where in zip(turns, firsts, lasts, strict=True)]
        return found

    def tokens(self, answer: Answer) -> list[int]:
        """What is learned of it."""
        return self.samples[answer.chat].tokens[answer.first : answer.last].tolist()

    def before(self, answer: Answer) -> list[int]:
        """What stands before it in training."""
        return self.samples[answer.chat].tokens[: answer.first].tolist()


def lesson(tokenizer: Any, template: ChatTemplate, thoughts: bool) -> Lesson | None:
    """Two chats, with tools if the template has them, and with the settings with which inference differs least from
    training. None: the template refuses all of these."""
    vocabulary = vocabulary_of(tokenizer)
    found: list[Lesson] = []
    for settings in SETTINGS:
        encoder = Encoder(vocabulary, template, LossWeights(), 1 << 20, "error", template_kwargs=settings)
        for tools in (True, False):
            chats = rows(tools, thoughts)
            items = [parse_row(chat) for chat in chats]
            samples = encoder.encode_batch(items)
            if any(isinstance(sample, RowError) for sample in samples):
                continue
            unlike = frozenset().union(*map(encoder.unlike_inference, items))
            found.append(Lesson(tokenizer, encoder, settings, chats, samples, unlike))
            break
        if not settings and not (found and found[0].unlike):
            break
    return min(found, key=lambda one: len(one.unlike), default=None)


def learned_by_heart(lesson: Lesson, folder: Any) -> dict[str, Tensor]:
    """Weights of a small random model after training on the two chats alone. folder: gets its config, as its base."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(lesson.tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=2048, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=lesson.tokenizer.eos_token_id,
    )  # fmt: skip
    config.save_pretrained(folder)
    model = LlamaForCausalLM(config)
    longest = max(map(len, lesson.samples))
    ids, weights = torch.zeros(2, longest, dtype=torch.long), torch.zeros(2, longest)
    for chat, sample in enumerate(lesson.samples):
        ids[chat, : len(sample)] = torch.from_numpy(sample.tokens).long()
        weights[chat, : len(sample)] = torch.from_numpy(sample.weights)
    targets, learned = ids[:, 1:], weights[:, 1:] > 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    for _ in range(STEPS):
        hidden = model.model(ids[:, :-1]).last_hidden_state[learned]
        losses = cross_entropy(model.lm_head(hidden), targets[learned], reduction="none")
        if losses.max() < NEARLY_SURE:
            return model.state_dict()
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"not learned by heart: {losses.max()}")


def exported(lesson: Lesson, folder: Any, stop_ids: list[int] | None = None) -> Any:
    """The export, as `dist-sft export` writes it of a run that trained all weights."""
    base, out = folder / "base", folder / "out"
    weights = learned_by_heart(lesson, base)
    save_tokenizer(lesson.tokenizer, lesson.encoder.template, out)
    settings = ModelSection(path=str(base), dtype="float32")
    save_full(settings, weights, list(lesson.encoder.stop_ids) if stop_ids is None else stop_ids, out)
    return out


class Served:
    """An export as a user of transformers opens it."""

    def __init__(self, folder: Any) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder)

    def prompt(self, lesson: Lesson, answer: Answer) -> list[int] | None:
        """What inference gives before an answer, where its text is that of training; None where it is another. Contents
        and arguments are as they are, or as templates want them."""
        row = lesson.rows[answer.chat]
        turns = [_as_thinking(turn) for turn in row["messages"][: answer.turn]]
        taught = self.tokenizer.decode(lesson.before(answer))
        for form in (turns, with_parts(turns), with_arguments_as_text(turns)):
            try:
                ids: list[int] = self.tokenizer.apply_chat_template(
                    form, tools=row.get("tools"), add_generation_prompt=True, return_dict=False, **lesson.settings
                )
            except Exception:  # noqa: BLE001 (a template may raise whatever it likes at a form that it does not know)
                continue
            if self.tokenizer.decode(ids) == taught:
                return ids
        return None

    def generated(self, prompt: list[int], most: int) -> list[int]:
        """Greedy, with the export's own generation config."""
        given = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": most, "pad_token_id": 0}
        return self.model.generate(given, attention_mask=torch.ones_like(given), **options)[0, len(prompt) :].tolist()


def _as_thinking(turn: dict[str, Any]) -> dict[str, Any]:
    """A thought under both names that templates have for it."""
    return turn | ({"thinking": turn["reasoning_content"]} if "reasoning_content" in turn else {})


class Then(datetime):
    """The day that training tells every template."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return TODAY


CLOCK = (chat_template_utils, "datetime", Then)
"""What to patch for transformers to tell templates the same day."""
