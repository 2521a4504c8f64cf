"""A conversation as a template can write it: thoughts where it has a place for them, ids of tool calls where it asks.

Conversation ─ Adapter ─> Conversation
"""

from dataclasses import replace
from typing import Literal

from dist_sft.chat.anatomy import Anatomy, made_id
from dist_sft.chat.conversation import Conversation, Message, ToolCall

WithoutPlace = Literal["refuse", "inline", "drop"]
"""See config.data.DataSection.reasoning_without_place."""


class Adapter:
    """For one template. without_place: what becomes of reasoning that it has no place for."""

    def __init__(self, anatomy: Anatomy, without_place: WithoutPlace) -> None:
        self._anatomy, self._without_place = anatomy, without_place
        self._makes_ids = anatomy.ids != "none"

    def __call__(self, conversation: Conversation) -> Conversation:
        """The same conversation; itself where nothing is to be changed."""
        messages = conversation.messages
        if any(message.inline is not None or message.reasoning for message in messages):
            messages = tuple(map(self._thought, messages))
        if self._makes_ids and any(message.tool_calls for message in messages):
            messages = self._with_ids(messages)
        return conversation if messages is conversation.messages else replace(conversation, messages=messages)

    def _thought(self, message: Message) -> Message:
        if message.inline is not None and self._anatomy.keeps_thoughts:
            return _inside(message, message.inline)
        if not message.reasoning or self._anatomy.reasons or self._without_place == "refuse":
            return message
        if self._without_place == "drop":
            return replace(message, reasoning=None)
        return _inside(message, message.inline or f"<think>\n{message.reasoning}\n</think>\n\n{message.content}")

    def _with_ids(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Calls that have no id get one by their place, and the results that follow them theirs, in order."""
        changed: list[Message] = []
        waiting: list[str] = []
        count = 0
        for i, message in enumerate(messages):
            if message.tool_calls:
                calls: list[ToolCall] = []
                for n, call in enumerate(message.tool_calls):
                    number = count + n if self._anatomy.ids == "named" else n
                    calls.append(replace(call, id=call.id or made_id(self._anatomy.ids, call.name, i, number)))
                count += len(calls)
                waiting = [call.id for call in calls if call.id]
                message = replace(message, tool_calls=tuple(calls))
            elif message.role == "tool" and waiting:
                answered = message.call_id if message.call_id in waiting else waiting[0]
                waiting.remove(answered)
                message = replace(message, call_id=message.call_id or answered)
            changed.append(message)
        return tuple(changed)


def _inside(message: Message, content: str) -> Message:
    return replace(message, content=content, reasoning=None, inline=None, thought=len(content) - len(message.content))
