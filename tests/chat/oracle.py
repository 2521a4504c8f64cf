"""What is right, written without a line of dist_sft: rows -> messages of transformers -> learned text."""

import csv
import json
import unicodedata
from pathlib import Path
from typing import Any

ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function_call": "assistant"}
STOPS = {"qwen3": "<|im_end|>", "llama3_1": "<|eot_id|>", "gemma3": "<end_of_turn>", "smollm2": "<|im_end|>"}


def read(file: Path, count: int) -> list[dict[str, Any]]:
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    elif file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    else:
        rows = json.loads(file.read_text(encoding="utf-8"))
    return rows[:count]


def messages(row: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """A row of any file in ../shared/data -> (messages, tools) for apply_chat_template."""
    tools = json.loads(row["tools"]) if row.get("tools") else []
    tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None
    if "conversations" in row:
        return [_sharegpt(turn) for turn in row["conversations"]], tools
    if "messages" in row:
        return [_parts(turn) for turn in row["messages"]], tools
    if "instruction" in row:
        question = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
        return _pair(question, row["response"]), None
    if "prompt" in row:
        return _pair(row["prompt"], row["completion"]), None
    return _pair(row["question"], row["answer"]), None


def types_control_tokens(turns: list[dict[str, Any]]) -> bool:
    """Two rows of lf_reason_tool_use_demo_50 hold a stray `</think>`: transformers makes a control token of it."""
    return any(token in json.dumps(turns) for token in ("think>", "tool_call>", "<|"))


def learned(model: str, turns: list[dict[str, Any]]) -> str:
    """Every answer and its stop token, as the model's own template writes them."""
    asked = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    return "".join(
        _answer(model, turn, i > asked) + STOPS[model]
        for i, turn in enumerate(turns)
        if turn["role"] == "assistant" and turn.get("weight", 1) > 0
    )


def _answer(model: str, turn: dict[str, Any], current: bool) -> str:
    text = turn["content"].strip() if model in ("llama3_1", "gemma3") else turn["content"]
    if model != "qwen3":
        return text
    text = unicodedata.normalize("NFC", text)
    for i, call in enumerate(turn.get("tool_calls", [])):
        call = call["function"]
        arguments = json.dumps(call["arguments"], ensure_ascii=False)
        text += "\n" if text or i else ""
        text += f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {arguments}}}\n</tool_call>'
    if current and turn.get("reasoning_content"):
        text = f"<think>\n{unicodedata.normalize('NFC', turn['reasoning_content']).strip(chr(10))}\n</think>\n\n{text}"
    return text


def _pair(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _call(text: str | dict[str, Any]) -> dict[str, Any]:
    call = json.loads(text) if isinstance(text, str) else text
    arguments = call["arguments"]
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _sharegpt(turn: dict[str, Any]) -> dict[str, Any]:
    if turn["from"] == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": [_call(turn["value"])]}
    return {"role": ROLES[turn["from"]], "content": turn["value"]}


def _parts(turn: dict[str, Any]) -> dict[str, Any]:
    by_type: dict[str, list[Any]] = {"text": [], "reasoning": [], "tool_call": []}
    for part in turn["content"]:
        by_type[part["type"]].append(part["value"])
    message: dict[str, Any] = {"role": turn["role"], "content": "".join(by_type["text"])}
    if by_type["reasoning"]:
        message["reasoning_content"] = "".join(by_type["reasoning"])
    if by_type["tool_call"]:
        message["tool_calls"] = [_call(value) for value in by_type["tool_call"]]
    return message | ({"weight": turn["loss_weight"]} if "loss_weight" in turn else {})
