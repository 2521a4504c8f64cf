"""What a template writes between turns, learned from small conversations: by that, its own text can be read back.

Renderer ─ learn ─> Dialect ─ prerendered ─> a row's text as the turns that it was written of

What is learned here is a guess at how a text falls into turns. Whether it was right is proved in `prerendered`.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dist_sft.chat.conversation import Conversation, Message, Role, ToolCall
from dist_sft.chat.layouts import found_json
from dist_sft.chat.render import Renderer
from dist_sft.core.errors import RowError

Gap = tuple[Role | None, Role]
"""The roles of the turns that a text stands between; None: it is the first of the text."""

_OPENED = re.compile(r"<\w+>\s*\Z")
"""At the end of a generation prompt: a tag that a thought follows."""
_NO_THOUGHT = re.compile(r"\s*<[^<>\s/]+>\s*</[^<>\s]+>\s*")


@dataclass(frozen=True, slots=True)
class ToolsText:
    """How a system turn tells of tools: before (with a system prompt, and without), between and after the schemas."""

    before: str
    alone: str
    between: str
    after: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a template writes.

    gaps          by the roles around them, the longest first
    ends          after the last answer of a text
    prompts       what stands before an answer, behind the question: without a thought, and as a generation prompt
    thought       that it adds to an answer which has none, or ""
    stops         control tokens that end an answer
    openings      of all turns; one of them begins a text
    bos           what begins every text, or ""; a tokenizer adds it by itself
    leads         control tokens that may stand before a text and say nothing of it
    writes_calls  it has a place for calls of tools
    tools         how it tells of tools; None where it does so elsewhere than in the system turn
    """

    gaps: Mapping[Gap, tuple[str, ...]] = field(default_factory=dict)
    ends: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    thought: str = ""
    stops: tuple[str, ...] = ()
    openings: tuple[str, ...] = ()
    bos: str = ""
    leads: tuple[str, ...] = ()
    writes_calls: bool = False
    tools: ToolsText | None = None


_ROLE_OF = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
_CALL = ToolCall("zqcall", {"zqkey": "zqvalue"}, "zqcallid1")
_SCHEMAS = tuple(
    {"type": "function", "function": {"name": name, "description": "zq", "parameters": {
        "type": "object", "properties": {"zqkey": {"type": "string", "description": "zq"}}, "required": ["zqkey"]}}}
    for name in ("zqcall", "zqother")
)  # fmt: skip


def learn(renderer: Renderer, suspect: re.Pattern[str], special_tokens: Mapping[str, str]) -> Dialect:
    """What this template writes between turns; nothing where it refuses one question and its answer.

    suspect: finds its control tokens.
    """
    found: dict[Gap, dict[str, None]] = {}
    ends: dict[str, None] = {}
    for shape in ("ua", "uaua", "sua", "suaua"):
        roles, gaps = _gaps(renderer, shape)
        for before, role, gap in zip((None, *roles), roles, gaps, strict=False):
            found.setdefault((before, role), {})[gap] = None
        ends |= dict.fromkeys(gaps[len(roles) :])
    answers = list(found.get(("user", "assistant"), {}))
    if not answers:
        return Dialect()
    prompt = _rendered(renderer, _talk("u"), prompt=True).rpartition(_word(0))[2]
    opening, thought = _opening(prompt, answers)
    found["user", "assistant"] |= dict.fromkeys([opening])
    named = {name: special_tokens[name] for name in ("bos_token", "eos_token", "pad_token") if name in special_tokens}
    stops = dict.fromkeys(
        match[0]
        for text in (*found.get(("assistant", "user"), {}), *ends, named.get("eos_token", ""))
        if (match := suspect.search(text))
    )
    for key, gap in _tool_gaps(renderer, opening, tuple(stops)):
        found.setdefault(key, {})[gap] = None
    found.pop(("system", "user"), None) if not _marked(found, ("system", "user"), suspect) else None
    bos = named.get("bos_token", "")
    if any(bos in gap for gap in found.get(("assistant", "user"), {})) or not all(
        gap.startswith(bos) for gap in found[None, "user"]
    ):
        bos = ""  # it opens turns, too, or no text
    closing = {*stops, bos} - {""}
    openings = {_opens(gap, suspect, closing) for key, gaps in found.items() for gap in gaps if key[0] != "tool"}
    openings |= {gap.removeprefix(bos).strip() for (before, _), gaps in found.items() if before is None for gap in gaps}
    return Dialect(
        gaps={key: tuple(sorted(gaps, key=len, reverse=True)) for key, gaps in found.items()},
        ends=tuple(sorted(ends, key=len, reverse=True)),
        prompts=tuple({_opens(text, suspect, closing): None for text in (opening, prompt)} if prompt else (opening,)),
        thought=thought,
        stops=tuple(stops),
        openings=tuple(sorted(openings - {""})),
        bos=bos,
        leads=tuple(dict.fromkeys([*closing, *named.values()])),
        writes_calls=_writes_calls(renderer),
        tools=_tools_text(renderer, found),
    )


def _talk(shape: str) -> Conversation:
    """A conversation of these roles, of which each turn says a word of its own."""
    return Conversation(tuple(Message(_ROLE_OF[role], _word(i)) for i, role in enumerate(shape)))  # type: ignore[arg-type]


def _word(i: int) -> str:
    return f"zq{'abcdefgh'[i]}w"


def _gaps(renderer: Renderer, shape: str) -> tuple[list[Role], list[str]]:
    """What stands before each word of a conversation, and after the last; nothing where it is refused."""
    talk = _talk(shape)
    text = _rendered(renderer, talk)
    roles: list[Role] = [message.role for message in talk.messages]
    pieces = re.split("|".join(_word(i) for i in range(len(shape))), text)
    return (roles, pieces) if len(pieces) == len(roles) + 1 else ([], [])


def _rendered(renderer: Renderer, talk: Conversation, prompt: bool = False) -> str:
    try:
        return renderer.render(talk, prompt=prompt)
    except RowError:
        return ""


def _opening(prompt: str, answers: Sequence[str]) -> tuple[str, str]:
    """What stands before an answer without a thought, from the end of the question on; and the empty thought."""
    bare = _OPENED.sub("", prompt)
    opening = next((text for text in (prompt, bare) if text and any(gap.startswith(text) for gap in answers)), "")
    if _OPENED.search(opening) and any(gap.startswith(bare) for gap in answers):
        opening = bare
    if not opening:
        return min(answers, key=len), ""
    thoughts = (gap[len(opening) :] for gap in answers if gap.startswith(opening))
    return opening, next((text for text in thoughts if _NO_THOUGHT.fullmatch(text)), "")


def _tool_gaps(renderer: Renderer, opening: str, stops: tuple[str, ...]) -> Iterator[tuple[Gap, str]]:
    """Gaps around the results of tools. What follows a call is told from the call by the stop that ends it."""
    call = Message("assistant", "", tool_calls=(_CALL,))
    results = [Message("tool", _word(i), name="zqcall", call_id="zqcallid1") for i in (1, 2)]
    says = Message("assistant", _word(3))
    text = _rendered(renderer, Conversation((Message("user", _word(0)), call, *results, says), _SCHEMAS[:1]))
    pieces = re.split("|".join(_word(i) for i in range(4)), text)
    if len(pieces) != 5:
        return
    at = min((place for stop in stops if (place := pieces[1].find(stop, len(opening))) >= 0), default=-1)
    if at >= 0:
        yield ("assistant", "tool"), pieces[1][at:]
    yield ("tool", "tool"), pieces[2]
    yield ("tool", "assistant"), pieces[3]
    prompt = _rendered(
        renderer, Conversation((Message("user", _word(0)), call, *results), _SCHEMAS[:1]), prompt=True
    ).rpartition(_word(2))[2]
    if prompt and not _OPENED.search(prompt):
        yield ("tool", "assistant"), prompt


def _marked(found: Mapping[Gap, Mapping[str, None]], key: Gap, suspect: re.Pattern[str]) -> bool:
    """Whether control tokens stand in every gap of this kind: else what is a gap cannot be told from a turn's text."""
    return all(suspect.search(gap) for gap in found.get(key, {}))


def _opens(gap: str, suspect: re.Pattern[str], closing: Collection[str]) -> str:
    """The part of a gap that opens the next turn: what follows the last control token that closes something, or that
    token where nothing does (GLM ends an answer with the next turn's <|user|>)."""
    closed = [token for token in suspect.finditer(gap) if token[0] in closing]
    rest = gap[closed[-1].end() :] if closed else gap
    return (rest if rest.strip() or not closed else closed[-1][0]).strip()


def _writes_calls(renderer: Renderer) -> bool:
    call = Message("assistant", "", tool_calls=(_CALL,))
    asked = (Message("user", _word(0)), call)
    result = Message("tool", _word(1), name="zqcall", call_id="zqcallid1")
    talks = (Conversation(asked, _SCHEMAS[:1]), Conversation(asked), Conversation((*asked, result), _SCHEMAS[:1]))
    return any("zqcall" in text.partition(_word(0))[2] for text in (_rendered(renderer, talk) for talk in talks))


def _tools_text(renderer: Renderer, found: Mapping[Gap, Mapping[str, None]]) -> ToolsText | None:
    """Where the schemas stand in a system turn, as JSON; None where they stand elsewhere, or otherwise."""
    texts = [_rendered(renderer, Conversation(_talk(shape).messages, _SCHEMAS)) for shape in ("sua", "ua")]
    pieces = []
    for text in texts:
        places = [(start, end) for value, start, end in found_json(text) if value in _SCHEMAS]
        if len(places) != len(_SCHEMAS):
            return None
        (first, second), (third, fourth) = places
        pieces.append((text[:first], text[second:third], text[fourth:]))
    starts, after_system = found.get((None, "system"), {}), found.get(("system", "user"), {})
    start = next((text for text in starts if pieces[0][0].startswith(text) and pieces[1][0].startswith(text)), None)
    rest, _, _ = pieces[0][2].partition(_word(1))
    end = next((text for text in after_system if rest.endswith(text)), None)
    if start is None or end is None or not pieces[0][0].startswith(start + _word(0)):
        return None
    return ToolsText(
        before=pieces[0][0][len(start) + len(_word(0)) :],
        alone=pieces[1][0][len(start) :],
        between=pieces[0][1],
        after=rest[: len(rest) - len(end)],
    )


def told_tools(text: str, tools: ToolsText) -> tuple[str, tuple[dict[str, object], ...]] | None:
    """A system prompt without what it tells of tools, and the schemas; None where it tells of none."""
    if text.startswith(tools.alone):
        prompt, place = "", len(tools.alone)
    elif (at := text.find(tools.before)) >= 0:
        prompt, place = text[:at], at + len(tools.before)
    else:
        return None
    decoder = json.JSONDecoder()
    schemas: list[dict[str, object]] = []
    while text[place:] != tools.after:
        place += len(tools.between) if schemas else 0
        try:
            schema, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return None
        schemas.append(schema)
    return (prompt, tuple(schemas)) if schemas and all(isinstance(schema, dict) for schema in schemas) else None
