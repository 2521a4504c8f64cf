"""Which format a row has, and which of its keys holds what.

row ─ by_part (the source's columns) ─ recognised ─> row, format
"""

from collections.abc import Mapping
from typing import Any

from dist_sft.chat.fields import KNOWN, OTHERS, PREFERRED, is_filled, listed
from dist_sft.chat.glaive import is_glaive
from dist_sft.chat.messages import bad_row
from dist_sft.core.errors import RowError

Row = Mapping[str, Any]

TURNS = ("messages", "conversations", "conversation")
MAYBE_TURNS = ("contents", "data")
"""Keys that hold turns in some files (Gemini, UltraChat), and anything in others."""
GLAIVE = ("chat", "sample")
QUESTIONS = {
    "instruction": ("output", "response", "completion", "answer"),
    "prompt": ("completion", "response", "output", "answer"),
    "question": ("answer", "response", "output", "completion"),
    "query": ("response", "answer", "answers", "output", "completion"),
    "problem": ("solution", "answer", "response", "output"),
    "user": ("assistant",),
    "human": ("assistant", "gpt", "bot"),
    "inputs": ("targets",),
    "message_1": ("message_2",),
    "input": ("output", "target", "response", "completion", "answer", "ideal"),
}
"""What a question is called, and what its answer is called beside it. The first is its partner: publishers write the
two together, and an answer of another name beside them is something else."""
PARTNERLESS = ("instruction",)
"""Questions without a partner: two answers beside one are a question to the user."""
UNSURE = ("user", "human", "input")
"""Questions only where no other is: a name of a user, or what is given beside a question."""
QUESTIONS_OF = {
    "alpaca": ("instruction",),
    "prompt_completion": ("prompt",),
    "question_answer": ("question", "query", "problem", "inputs", "message_1", "user", "human", "input"),
}
"""Names of the questions of each format that has some; the first that is there, with an answer, says the format."""
_COMPARED = frozenset((*PREFERRED, *OTHERS))


def refuse_preferences(row: Row) -> None:
    """Two answers to compare: learning from one is for the user to ask for."""
    if _COMPARED.isdisjoint(row):
        return
    held = [key for key in (*PREFERRED, *OTHERS) if is_filled(row.get(key))]
    other = next((key for key in held if key in OTHERS), None)
    better = next((key for key in held if key in PREFERRED), None)
    if not held:
        return
    if better is None:
        fix = f"remove {other}: the row's other answer is learned"
    elif len(turns := listed(row[better]) or []) > 1 and isinstance(turns[0], Mapping):
        fix = f"to learn {better} alone, set columns of the source: {{messages: {better}}}"
    else:
        asked = next((key for key in QUESTIONS if is_filled(row.get(key))), None)
        fix = (
            f"to learn {better} alone, set columns of the source: {{prompt: {asked}, completion: {better}}}"
            if asked and isinstance(row[better], str)
            else f"to learn {better} alone, write it as the last message"
        )
    raise RowError(
        f"{' and '.join(held)} are answers to compare, and this run learns from one", reason="preference", fix=fix
    )


def by_part(row: Row, columns: Mapping[str, str]) -> tuple[Row, set[str]]:
    """The row with its parts under their names; the columns that nobody reads for being called as a part is."""
    parts = {part: _column(row, column, part) for part, column in columns.items()}
    taken = {column.partition(".")[0] for column in columns.values()}
    rest = {key: value for key, value in row.items() if key not in taken}
    hidden = {key for key, value in rest.items() if key in parts and is_filled(value)}
    return rest | parts, hidden


def _column(row: Row, column: str, part: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        items = listed(value)
        if items is not None and name.isdecimal() and int(name) < len(items):
            value = items[int(name)]
            continue
        if not isinstance(value, Mapping) or name not in value:
            if part in ("system", "tools", "weight", "reasoning"):  # not every row must have them
                return None
            keys = ", ".join(map(repr, value)) if isinstance(value, Mapping) else "none"
            raise bad_row(
                f"there is no column {column!r} for its {part}; there are {keys}", "mend columns of the source"
            )
        value = value[name]
    return value


def is_row(value: Row) -> bool:
    """Whether an object has the keys of a row."""
    try:
        recognised(value)
    except RowError:
        return False
    return True


def recognised(row: Row) -> tuple[Row, str]:
    """A row and its format; its keys in small letters where they are a format's only so (Question, Answer)."""
    if (format := _format_of(row)) is not None:
        return row, format
    small = {key.lower() if isinstance(key, str) else key: value for key, value in row.items()}
    if len(small) == len(row) and (format := _format_of(small)) is not None:
        return small, format
    have = {str(key) for key, value in row.items() if value is not None}
    if "instances" in have:
        raise RowError(
            "the row holds several examples under instances", reason="unknown_format",
            fix="make a row of each: instruction, input and output",
        )  # fmt: skip
    if {"role", "content"} <= have or {"role", "text"} <= have:
        raise RowError(
            "the row is one message, not a conversation",
            reason="unknown_format",
            fix='put all messages of a conversation into one row: {"messages": [{"role": ..., "content": ...}, ...]}',
        )
    asked = next((key for key in QUESTIONS if isinstance(row.get(key), str) and row[key]), None)
    texts = [key for key, value in row.items() if isinstance(value, str) and value and key not in KNOWN | {asked}]
    raise RowError(
        f"the row's keys are {', '.join(map(repr, sorted(have))) or 'none'}", reason="unknown_format",
        fix=f"say which holds the answer: columns: {{prompt: {asked}, completion: {' or '.join(map(str, texts))}}}"
        if asked and texts
        else "use messages, conversations, instruction + output, prompt + completion, question + answer, or text; or "
        "say what is what with columns of the source, e.g. columns: {prompt: query, completion: reply}",
    )  # fmt: skip


def _format_of(row: Row) -> str | None:
    have = {key for key, value in row.items() if value is not None}
    if not have.isdisjoint(TURNS):
        return "messages" if "messages" in have and "conversations" not in have else "sharegpt"
    if any(is_glaive(row.get(key)) for key in GLAIVE):
        return "glaive"
    for format, questions in QUESTIONS_OF.items():
        for question in questions:
            if question in have and not have.isdisjoint(QUESTIONS[question]):
                return format
    if any(are_turns(row.get(key)) for key in MAYBE_TURNS):
        return "messages"
    return "text" if "text" in have and "role" not in have else None


def are_turns(value: Any) -> bool:
    """Whether something are turns beyond doubt: messages, or texts of questions and answers."""
    items = listed(value) or []
    texts = len(plain_texts(items))
    return (texts > 0 and texts % 2 == 0) or any(isinstance(item, Mapping) and "role" in item for item in items)


def plain_texts(turns: Any) -> list[str]:
    """The turns, where all of them are plain texts."""
    found = listed(turns) or []
    return found if all(isinstance(turn, str) for turn in found) else []
