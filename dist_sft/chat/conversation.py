"""What a row means, whatever format it came in.

file row ─ chat/formats ─> Conversation | Document ─ chat/encode ─> EncodedSample
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function.

    arguments  a JSON object, or the text that the row held if it was not one
    id         that the row gave it, to which a result answers; None: it has none
    """

    name: str
    arguments: dict[str, Any] | str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    content    text; "" where the turn is only tool calls
    reasoning  text that came before the answer, or None
    weight     loss weight from the row, which overrides the role's; None: the role's
    name       of who speaks: of the tool whose result this is
    call_id    of the tool call whose result this is
    inline     the row's content where the reasoning (which may be empty) stood inside it; else None
    thought    characters at the start of the content that are a thought and not the answer
    """

    role: Role
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    weight: float | None = None
    name: str | None = None
    call_id: str | None = None
    inline: str | None = field(default=None, compare=False)
    thought: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, and the JSON schemas of the tools that the assistant may call.

    template_kwargs  what the row says to the chat template beside them, e.g. {"enable_thinking": False}
    unread           keys of the row, and of its turns, that hold something and say nothing here
    reread           it was read out of a text that the template could have written, but for so many empty thoughts
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    unread: frozenset[str] = field(default=frozenset(), compare=False)
    reread: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, all of it learned: continued pre-training or replay. unread: as of a Conversation."""

    text: str
    unread: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One conversation as the model sees it.

    tokens   int32[T]    ids of the template rendered whole
    weights  float32[T]  loss weight of predicting token t from those before it; weights[0] is 0
    cut      tokens that truncation took off the end (0: the sample is whole)
    lost     of these, how many were to be learned
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    cut: int = 0
    lost: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def supervised(self) -> int:
        """Number of tokens with a weight above 0."""
        return int(np.count_nonzero(self.weights))

    @property
    def total_weight(self) -> float:
        return float(self.weights.sum(dtype=np.float64))
