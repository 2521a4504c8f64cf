"""Where inference with a chat template differs from what the template teaches, which no training can change.

A template may open answers otherwise in its generation prompt than in a whole text (Qwen3's empty thought), end earlier
answers with a token on which generation must not stop (gpt-oss), write a stop token inside an answer (GigaChat), or
write earlier turns otherwise once others follow (Mistral puts tools before the last question).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from dist_sft.chat.anatomy import Anatomy
from dist_sft.chat.conversation import Conversation
from dist_sft.chat.render import Renderer
from dist_sft.core.errors import RowError

HISTORY = (
    "the turns before an answer are not written as at inference, because the template looks at those that follow "
    "(data.loss.turns=last learns the last answer alone)"
)
MOST_SHOWN = 60
"""Characters of a prompt that a line for a person holds."""


class Answer(NamedTuple):
    """A learned answer.

    message  index
    before   the text before what is learned
    string   where in it the last string of the row ends
    tokens   what is learned, in words; "" for tokens that are not special
    """

    message: int
    before: str
    string: int
    tokens: Sequence[str]


class Inference:
    """Compares answers with what inference does, under one template."""

    def __init__(self, renderer: Renderer, anatomy: Anatomy) -> None:
        self._renderer, self._turns, self._stops = renderer, anatomy.turns, frozenset(anatomy.stops)
        self._said: dict[tuple[str, str], str] = {}

    def differs(self, conversation: Conversation, answers: Sequence[Answer]) -> Iterator[str]:
        """For a person, what of some answers of a row is not as it is at inference."""
        for answer in answers:
            yield from self._stopping(answer.tokens)
            opening = self._turns.opening(conversation, answer.message)
            if opening is None or self._agree(conversation, answer):
                continue
            if answer.before.endswith("".join(opening.prompt)):
                yield HISTORY
            else:
                yield self._opening(conversation, answer, opening.prompt)

    def _stopping(self, tokens: Sequence[str]) -> Iterator[str]:
        *inside, end = tokens
        if end not in self._stops:
            yield (
                f"an answer ends with {end}, on which generation does not stop (data.loss.turns=last leaves out all "
                "answers before the last question)"
            )
        for stop in self._stops.intersection(inside):
            yield f"an answer goes on behind {stop}, on which generation stops"

    def _opening(self, conversation: Conversation, answer: Answer, prompt: Sequence[str]) -> str:
        """What stands before an answer, and what inference puts there."""
        written = answer.before[answer.string :]
        shared = next((n for n in range(len(prompt), 0, -1) if _behind(written, prompt[:n]) is not None), 0)
        taught = _behind(written, prompt[:shared]) or ""
        given = "".join(prompt[shared:])
        if (taught, given) not in self._said:
            said = f"before an answer stands {_shown(taught)} in training and {_shown(given)} at inference"
            setting = self._setting(conversation, answer)
            same = f"; the same with {setting} as an argument of apply_chat_template" if setting else ""
            self._said[taught, given] = said + same
        return self._said[taught, given]

    def _setting(self, conversation: Conversation, answer: Answer) -> str | None:
        """The argument of the template with which inference puts before the answer what training does; None: there is
        none that is true or false."""
        for name in sorted(self._renderer.variables - conversation.template_kwargs.keys()):
            for value in (False, True):
                given = replace(conversation, template_kwargs=conversation.template_kwargs | {name: value})
                if self._agree(given, answer):
                    return f"{name}={value}"
        return None

    def _agree(self, conversation: Conversation, answer: Answer) -> bool:
        """Whether inference gives the very text that stands before the answer."""
        asked = replace(conversation, messages=conversation.messages[: answer.message])
        try:
            return self._renderer.render(asked, prompt=True) == answer.before
        except RowError:
            return False


def _behind(written: str, shared: Sequence[str]) -> str | None:
    """What stands behind a part of a generation prompt; None: it is not there."""
    opens = "".join(shared)
    at = written.rfind(opens) if opens.strip() else -1
    return written[at + len(opens) :] if at >= 0 else None


def _shown(text: str) -> str:
    text = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
    return repr(text) if text else "nothing"
