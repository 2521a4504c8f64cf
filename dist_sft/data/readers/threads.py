"""Messages that answer one another, as OpenAssistant publishes them -> conversations, one for each way through a tree.

Rows (a message each, with its parent's id; or a tree each, with replies inside) ─ threads ─> Rows (a conversation each)

Which ways: those that OpenAssistant's own loader takes. Each message without a reply ends one; where it is a question,
the answer before it does, once.

Opening costs a pass over ids, parents and roles of a file of messages, and over the whole of a file of trees.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from dist_sft.core.errors import RowError
from dist_sft.data.readers.base import RawRow, Rows, Values

_ROLES = {"prompter": "user", "user": "user", "assistant": "assistant"}
_OF_TREES = ("text", "role", "replies", "message_id", "parent_id")
_KEYS = ({"message_id", "parent_id"}, {"replies"}, {"prompt", "tree_state"})
_AT_ONCE = 512
MOST_TURNS = 1000


class Source(Rows, Protocol):
    """What `sources.RowSource` is."""

    name: str
    fingerprint: str


def as_threads(source: Source, keys: Collection[str] | None = None) -> Source:
    """The conversations of a source whose first row is a message with a parent, or a tree; any other as it is.

    keys: of every row, where the file says that without one of them being read.
    """
    if keys is not None and not any(known <= set(keys) for known in _KEYS):
        return source
    try:
        first = source[0] if len(source) else {}
    except RowError:
        return source
    if _root(first) is not None:
        return _Trees(source)
    if {"message_id", "parent_id", "text", "role"} <= first.keys() and first["role"] in _ROLES:
        return _Messages(source)
    return source


class _Threads(Values):
    """Conversations out of rows that hold less, or more. Finds them again wherever it is unpickled."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.fingerprint = source, source.name, f"{source.fingerprint} threads"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("found", "places")}

    def _rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Raises RowError for a row that is none."""
        found = []
        for number, raw in zip(numbers, self.source.read(numbers), strict=True):
            if isinstance(raw, RowError):
                raise raw
            try:
                found.append(raw.parse())
            except RowError as error:
                raise error.at(self.source.where(number)) from None
        return found


class _Messages(_Threads):
    """A row of the file is one message, and knows its parent."""

    @cached_property
    def places(self) -> dict[Any, int]:
        """The row of each message, by its id."""
        return {id_: place for place, id_ in enumerate(self.source.column("message_id"))}

    @cached_property
    def found(self) -> list[int]:
        """The last message of each conversation."""
        parents, roles = self.source.column("parent_id"), self.source.column("role")
        replies: dict[int, list[int]] = {}
        for place, parent in enumerate(parents):
            if parent is not None and parent in self.places:
                replies.setdefault(self.places[parent], []).append(place)
        return [
            place
            for place, role in enumerate(roles)
            if role == "assistant" and _ends(replies.get(place, []), lambda reply: replies.get(reply, []))
        ]

    def __len__(self) -> int:
        return len(self.found)

    def where(self, i: int) -> str:
        return self.source.where(self.found[i])

    def __getitem__(self, i: int) -> dict[str, Any]:
        thread, place = [], self.found[i]
        while True:
            (message,) = self._rows([place])
            thread.append(message)
            parent = message.get("parent_id")
            if parent is None:
                return _conversation(thread[::-1])
            if parent not in self.places or len(thread) > MOST_TURNS:
                what = "is not in the file" if parent not in self.places else "is its own answer"
                raise RowError(f"the message {parent!r}, which it answers, {what}", reason="bad_row", fix="add it")
            place = self.places[parent]

    def column(self, name: str) -> list[Any]:
        values = self.source.column(name)
        return [values[place] for place in self.found]


class _Trees(_Threads):
    """A row of the file is a question, with replies inside, and replies inside these."""

    @cached_property
    def found(self) -> list[tuple[int, tuple[int, ...]]]:
        """The row of each conversation, and which reply follows in each turn."""
        found: list[tuple[int, tuple[int, ...]]] = []
        for first in range(0, len(self.source), _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, len(self.source)))
            for number, raw in zip(numbers, self.source.read(numbers), strict=True):
                root = _root(_parsed(raw))
                found += [(number, way) for way in (_ways(root) if root else [()])]
        return found

    def __len__(self) -> int:
        return len(self.found)

    def where(self, i: int) -> str:
        number, way = self.found[i]
        return f"{self.source.where(number)}{''.join(f'.replies[{reply}]' for reply in way)}"

    def __getitem__(self, i: int) -> dict[str, Any]:
        number, way = self.found[i]
        (row,) = self._rows([number])
        node = _root(row)
        if node is None:
            raise RowError("it is not a tree of messages", reason="bad_row", fix="remove it, or set a format")
        thread = [node]
        for reply in way:
            node = _replies(node)[reply]
            thread.append(node)
        return _conversation(thread)

    def column(self, name: str) -> list[Any]:
        values = self.source.column(name)
        return [values[number] for number, _ in self.found]


def _parsed(raw: RawRow | RowError) -> Mapping[str, Any]:
    if isinstance(raw, RowError):
        return {}
    try:
        return raw.parse()
    except RowError:
        return {}


def _root(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first message of a tree; None for a row that is no tree."""
    node = row["prompt"] if isinstance(row.get("prompt"), Mapping) else row
    return node if {"text", "role", "replies"} <= node.keys() and node["role"] in _ROLES else None


def _replies(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    replies = node.get("replies")
    return [reply for reply in replies if isinstance(reply, Mapping)] if isinstance(replies, list) else []


def _ways(root: Mapping[str, Any]) -> Iterator[tuple[int, ...]]:
    """The replies that lead to the last message of each conversation, in the order of the file."""
    waiting: list[tuple[Mapping[str, Any], tuple[int, ...]]] = [(root, ())]
    while waiting:
        node, way = waiting.pop()
        replies = _replies(node)
        if node.get("role") == "assistant" and _ends(replies, _replies):
            yield way
        if len(way) < MOST_TURNS:
            waiting += [(reply, (*way, number)) for number, reply in reversed(list(enumerate(replies)))]


def _ends(replies: Sequence[Any], replies_of: Any) -> bool:
    """Whether a conversation ends with an answer: nothing follows it, or a question that nobody answered."""
    return not replies or not replies_of(replies[0])


def _conversation(thread: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turns of OpenAI's form; what else a message holds stays in its turn, to be told."""
    if any(node.get("deleted") is True for node in thread):
        raise RowError("a message in it was deleted", reason="deleted", fix="remove it, or set data.bad_rows=drop")
    return {"messages": [
        {"role": _ROLES.get(node.get("role", ""), node.get("role")), "content": node.get("text"),
         **{key: value for key, value in node.items() if key not in _OF_TREES}}
        for node in thread
    ]}  # fmt: skip
