"""What a template does, learned once from small conversations: how an answer opens and stops, what it leaves out."""

import re
from dataclasses import dataclass

from dist_sft.chat.conversation import Conversation, Message
from dist_sft.chat.marks import Located, render_marked
from dist_sft.chat.render import Renderer
from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.core.errors import RowError, TemplateError

NOTHING = re.compile(r"(?!)")
_ASK, _SAY = Message("user", "1"), Message("assistant", "2")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A template, taken apart.

    openings   what may stand before an answer: the generation prompt, then shorter forms of it in older turns
    stops      special tokens, one of which ends each answer; the template's own first
    reasons    it writes reasoning
    has_tools  it writes schemas of tools
    tagged     it has {% generation %} regions
    words      all text that it wrote by itself
    """

    openings: tuple[str, ...]
    stops: tuple[str, ...]
    reasons: bool
    has_tools: bool
    tagged: bool
    words: frozenset[str]


def study(renderer: Renderer, vocabulary: Vocabulary) -> Anatomy:
    """Take a template apart.

    Raises:
        TemplateError: it refuses one question and one answer, has no generation prompt, writes no stop token, or its
            {% generation %} regions leave out the answer or its stop token.
    """
    try:
        one = render_marked(renderer, Conversation((_ASK, _SAY)), NOTHING)
        two = render_marked(renderer, Conversation((_ASK, _SAY, _ASK, _SAY)), NOTHING)
        asked = render_marked(renderer, Conversation((_ASK,)), NOTHING)
        prompted = render_marked(renderer, Conversation((_ASK,)), NOTHING, prompt=True)
    except RowError as error:
        raise TemplateError(
            f"the chat template cannot write a question and an answer: {error.what}", fix="choose another data.template"
        ) from None
    if len(one.spans) != 2 or len(two.spans) != 4:
        raise TemplateError(
            "the chat template leaves out the question or the answer, or writes it twice",
            fix="choose another data.template",
        )
    stop, end = _stop(one, vocabulary)
    prompt = _generation_prompt(asked, prompted, stop)
    openings = dict.fromkeys(_opening(found, 2 * k, prompt) for found, k in ((one, 0), (two, 0), (two, 1)))
    if one.generation and not any(a <= one.spans[1].start and end <= b for a, b in one.generation):
        raise TemplateError(
            f"the chat template's {{% generation %}} region leaves out the answer or its {stop}",
            fix=f"let {{% endgeneration %}} follow {stop}: the model must learn to stop",
        )
    eos = vocabulary.special_tokens.get("eos_token", stop)
    return Anatomy(
        openings=tuple(sorted(openings, key=len, reverse=True)),
        stops=tuple(dict.fromkeys((stop, eos))),
        reasons=_writes_reasoning(renderer),
        has_tools=_writes_tools(renderer),
        tagged=bool(one.generation),
        words=renderer.literals | {prompt, one.text, two.text},
    )


def _generation_prompt(asked: Located, prompted: Located, stop: str) -> str:
    """What the template adds when an answer is awaited; or, if nothing, how it closes a question (`[/INST]`)."""
    before, after = asked.text, prompted.text
    prompt = after[len(before) :] if after.startswith(before) else ""
    if after == before and len(asked.spans) == 1:
        prompt = before[asked.spans[0].end :]
    if not prompt.strip() or (after == before and stop in prompt):
        raise TemplateError(
            "the chat template has no generation prompt, so nothing says where an answer begins",
            fix="let it write the opening of an assistant's turn `if add_generation_prompt`",
        )
    return prompt


def _opening(found: Located, question: int, prompt: str) -> str:
    """The generation prompt, or the longest beginning of it that stands right before an answer."""
    between = found.text[found.spans[question].end : found.spans[question + 1].start]
    for length in range(len(prompt), 0, -1):
        opening = prompt[:length]
        if opening.strip() and (between.endswith(opening) or (length == len(prompt) and opening in between)):
            return opening
    raise TemplateError(
        "the chat template opens an answer otherwise than its generation prompt does",
        fix=f"let each assistant's turn begin with {prompt!r}",
    )


def _stop(found: Located, vocabulary: Vocabulary) -> tuple[str, int]:
    """The first special token after the answer, and where it ends."""
    special = sorted((token.content for token in vocabulary.added_tokens if token.special), key=len, reverse=True)
    match = re.compile("|".join(map(re.escape, special)) or "(?!)").search(found.text, found.spans[1].end)
    if match is None:
        raise TemplateError(
            "the chat template writes no special token after an answer: no model would learn to stop",
            fix="write {{ eos_token }} at the end of each assistant's turn",
        )
    return match[0], match.end()


def _writes_reasoning(renderer: Renderer) -> bool:
    thinking = Message("assistant", "2", reasoning="3")
    return not render_marked(renderer, Conversation((_ASK, thinking)), NOTHING).lost


def _writes_tools(renderer: Renderer) -> bool:
    schema = {"type": "function", "function": {"name": "f", "description": "g", "parameters": {
        "type": "object", "properties": {"x": {"type": "string", "description": "h"}}, "required": ["x"]}}}  # fmt: skip
    try:
        return renderer.render(Conversation((_ASK, _SAY), (schema,))) != renderer.render(Conversation((_ASK, _SAY)))
    except RowError:
        return False
