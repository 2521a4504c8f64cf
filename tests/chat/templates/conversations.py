"""Rows as people have them, one of each kind. Every text in them stands once, so that it is found by looking for it."""

from typing import Any

Row = dict[str, Any]

PLAIN = ("single", "multi", "system", "parts", "unicode", "blanks", "forged")
"""Kinds that every template which can hold them must be able to train."""

_TOOLS = [{"type": "function", "function": {
    "name": "get_weather_xq", "description": "Weather lookup golf",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Name hotel"}},
                   "required": ["city"]}}}]  # fmt: skip

_WITH_TOOLS = ("tool_call", "parallel_calls", "call_with_text", "tools_unused", "reasoning_and_call")


def _user(content: Any) -> Row:
    return {"role": "user", "content": content}


def _system(content: str) -> Row:
    return {"role": "system", "content": content}


def _says(content: Any, thought: str | None = None, calls: list[Row] | None = None, **more: Any) -> Row:
    turn = {"role": "assistant", "content": content}
    turn |= {"reasoning_content": thought} if thought else {}
    return turn | ({"tool_calls": calls} if calls else {}) | more


def _call(city: str, id_: str = "a1B2c3D4e") -> Row:
    return {"id": id_, "type": "function", "function": {"name": "get_weather_xq", "arguments": {"city": city}}}


def _result(note: str, id_: str = "a1B2c3D4e") -> Row:
    content = f'{{"temp": 17, "note": "{note}"}}'
    return {"role": "tool", "tool_call_id": id_, "name": "get_weather_xq", "content": content}


def rows(forgery: str, stop: str) -> dict[str, Row]:
    """Row by kind.

    Args:
        forgery: control tokens of the template by which a user could open a turn of the assistant's.
        stop: the control token that ends an answer.
    """
    one, two, three = "Answer bravo one.", "Answer bravo two,\nwith lines.", "Answer bravo three."
    asked, noted = _user("Question alpha weather?"), _result("lima")
    turns: dict[str, list[Row]] = {
        "single": [_user("Question alpha: a prime above ten?"), _says("Answer bravo: eleven.")],
        "multi": [_user("Question alpha one?"), _says(one), _user("Question alpha two?"), _says(two),
                  _user("Question alpha three?"), _says(three)],
        "system": [_system("System charlie rules."), _user("Question alpha one?"), _says(one)],
        "parts": [_user([{"type": "text", "text": "Question alpha: "}, {"type": "text", "text": "one or two?"}]),
                  _says([{"type": "text", "text": one}])],
        "unicode": [_user("Question 数 é العربية 👩‍👩‍👧 alpha?"), _says("Answer 答え ß नमस्ते 👍🏽 bravo.")],
        "blanks": [_user("  Question alpha one? \n"), _says("\n Answer bravo one.  \n\n"),
                   _user("\n\nQuestion alpha two?\t"), _says(" Answer bravo two. ")],
        "forged": [_user(f"Question alpha {forgery} forged?"), _says(f"Answer bravo {stop} more.")],
        "late_system": [_system("System charlie rules."), _user("Question alpha one?"), _says(one),
                        _system("System foxtrot rules."), _user("Question alpha two?"), _says(two)],
        "tool_call": [asked, _says("", calls=[_call("Paris-kilo")]), noted, _says("Answer bravo: seventeen.")],
        "parallel_calls": [asked, _says("", calls=[_call("Paris-kilo"), _call("Oslo-mike", "f5G6h7J8k")]),
                           noted, _result("november", "f5G6h7J8k"), _says("Answer bravo: seventeen.")],
        "call_with_text": [asked, _says("Looking up oscar now.", calls=[_call("Paris-kilo")]), noted,
                           _says("Answer bravo: seventeen.")],
        "tools_unused": [_user("Question alpha one?"), _says(one)],
        "reasoning": [_user("Question alpha one?"), _says(one, "Thought delta one.")],
        "reasoning_multi": [_user("Question alpha one?"), _says(one, "Thought delta one."),
                            _user("Question alpha two?"), _says(two, "Thought echo two,\nwith lines.")],
        "think_inline": [_user("Question alpha one?"), _says(f"<think>\nThought delta one.\n</think>\n\n{one}")],
        "reasoning_and_call": [asked, _says("", "Thought delta one.", [_call("Paris-kilo")]), noted,
                               _says("Answer bravo: seventeen.", "Thought echo two.")],
        "assistant_first": [_says("Greeting papa."), _user("Question alpha one?"), _says(one)],
        "in_a_row": [_user("Question alpha one?"), _user("Question alpha two?"), _says(one), _says(two)],
        "weights": [_user("Question alpha one?"), _says(one, loss=False), _user("Question alpha two?"), _says(two)],
    }  # fmt: skip
    return {
        kind: {"messages": talk} | ({"tools": _TOOLS} if kind in _WITH_TOOLS else {}) for kind, talk in turns.items()
    }


KINDS = tuple(rows("", ""))
