"""The tools of a row: schemas beside its turns, and calls and results that are written inside them as text."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dist_sft.chat.conversation import Message
from dist_sft.chat.fields import TOOLS, Fields, listed
from dist_sft.chat.layouts import calls_in, results_in
from dist_sft.chat.messages import bad_row, from_json, parse_calls


def tools_of(row: Fields) -> tuple[dict[str, Any], ...]:
    """Schemas of the row's tools, all in OpenAI's form: {"type": "function", "function": {name, ...}}."""
    key = row.one_of(TOOLS) or "tools"
    tools = row.take(key)
    if isinstance(tools, str):
        tools = from_json(tools, key) if tools.strip() else None
    if tools is None:
        return ()
    schemas = listed(tools)
    if schemas is None:
        raise bad_row(f"{key} is not a list of schemas")
    read = [from_json(tool, f"{key}[{i}]") if isinstance(tool, str) else tool for i, tool in enumerate(schemas)]
    flat = [one for tool in read for one in (listed(_declared(tool)) or [tool])]
    for i, tool in enumerate(flat):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function", tool), Mapping):
            raise bad_row(f"{key}[{i}] is not a schema", 'use {"type": "function", "function": {"name": ...}}')
    return tuple(dict(tool) if "function" in tool else schema_of(tool) for tool in flat)


def _declared(tool: Any) -> Any:
    """The functions of a tool of Gemini's."""
    names = ("functionDeclarations", "function_declarations")
    return next((tool[name] for name in names if name in tool), None) if isinstance(tool, Mapping) else None


def schema_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function in OpenAI's form. Its Responses API writes the type beside the name; Anthropic calls the parameters
    input_schema."""
    function = {key: value for key, value in tool.items() if key != "type" or value != "function"}
    if "input_schema" in function and "parameters" not in function:
        function = {"parameters" if key == "input_schema" else key: value for key, value in function.items()}
    return {"type": "function", "function": function}


def with_calls(turns: tuple[Message, ...]) -> Iterator[Message]:
    """Turns in which calls and results that were written as text, as Hermes has them, are calls and results."""
    for i, turn in enumerate(turns):
        if turn.role == "assistant" and not turn.tool_calls and (found := calls_in(turn.content)):
            yield replace(turn, content=found[0], tool_calls=parse_calls(found[1], f"turn {i}"))
        elif turn.role == "tool" and (results := results_in(turn.content)):
            yield from (replace(turn, content=result) for result in results)
        else:
            yield turn
