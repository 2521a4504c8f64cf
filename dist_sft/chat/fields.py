"""Every filled key of a row, or of a turn, is read, or refused by name, or told as not read.

row ─ Fields ─ take ─> value
             └ rest ─> keys that nobody took; an error for one that would change what is learned
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from dist_sft.core.errors import RowError

_UNSEEN = "a run of text cannot see it: leave the row out, or remove the key if the text says enough without it"
_MASKS = "say it with loss_weight in each message, or with data.loss"

CHANGES_LEARNING: dict[str, str] = {
    **dict.fromkeys(
        ("image", "images", "image_url", "audio", "audios", "speech", "video", "videos", "media", "pixel_values"),
        _UNSEEN,
    ),
    **dict.fromkeys(
        ("loss", "train", "trainable", "learn", "loss_weight", "loss_weights", "weight", "weights", "sample_weight",
         "mask", "masks", "loss_mask", "train_mask", "assistant_mask", "assistant_masks", "completion_mask"), _MASKS
    ),
    **dict.fromkeys(
        ("system", "system_prompt", "system_message", "instructions"),
        'write it as the first message: {"role": "system", "content": ...}',
    ),
    **dict.fromkeys(
        ("context", "contexts", "input", "history"),
        "it may be part of the question: write it into the prompt, or remove the key",
    ),
    **dict.fromkeys(
        ("tools", "functions", "tool_calls", "function_call", "available_tools"),
        "use format messages, with tools beside them and tool_calls in the assistant's message",
    ),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking", "thought"),
        "use format messages, with reasoning_content in the assistant's message",
    ),
    **dict.fromkeys(
        ("chat_template", "chat_template_kwargs", "documents"),
        "no row has a template of its own here: set data.template, or remove the key",
    ),
}  # fmt: skip
"""Keys with a meaning for training wherever they stand, and what to do where a format does not read them."""

ENCODED = ("labels", "input_ids", "attention_mask", "token_ids", "tokens")
"""Keys that hold a row encoded elsewhere, where they hold lists."""

KNOWN = frozenset({
    "id", "ids", "_id", "uid", "uuid", "idx", "index", "row", "hash", "key", "name", "title", "url", "link",
    "prompt_id", "conversation_id", "message_id", "parent_id", "question_id", "source", "sources", "dataset",
    "data_source", "subset", "split", "category", "categories", "topic", "topics", "domain", "task", "type", "kind",
    "language", "lang", "license", "score", "scores", "rating", "ratings", "quality", "difficulty", "level", "reward",
    "length", "num_turns", "num_tokens", "token_count", "model", "generator", "teacher", "annotator", "author",
    "user_id", "created", "created_at", "date", "timestamp", "time", "tag", "tags", "metadata", "meta", "info",
    "extra", "extra_info", "origin", "parent", "method", "round",
})  # fmt: skip
"""Keys that say where a row is from or what it is about: told as not read, and asked about no more."""


class Fields:
    """A mapping of which each key is ticked off when it is taken. where: of it in the row, "" for the row itself."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values, self.where = values, where
        self._taken: set[str] = set()

    def take(self, key: str) -> Any:
        """A value; None where there is none, or one that says nothing, as an empty list."""
        self._taken.add(key)
        value = self.values.get(key)
        return value if isinstance(value, str) or is_filled(value) else None

    def one_of(self, keys: Collection[str]) -> str | None:
        """Which of several keys for one part is filled. Raises RowError where two are."""
        filled = [key for key in keys if is_filled(self.values.get(key))]
        if len(filled) > 1:
            raise RowError(
                f"{' and '.join(self.place(key) for key in filled)} are both filled, and either would do",
                reason="bad_row",
                fix="remove one of them, or say which with columns of the source, e.g. columns: {completion: "
                f"{filled[0]}}}",
            )
        return filled[0] if filled else next((key for key in keys if key in self.values), None)

    def place(self, key: str) -> str:
        """Where the value of a key stands in the row."""
        return f"{self.where}.{key}" if self.where else key

    def rest(self) -> Iterator[str]:
        """Filled keys that nobody took. Raises RowError where one of them would change what is learned."""
        for key, value in self.values.items():
            if key in self._taken or not is_filled(value):
                continue
            fix = CHANGES_LEARNING.get(key)
            if key in ENCODED and not isinstance(value, str | int | float):
                fix = "rows are encoded here, by the run's own tokenizer: give the text, and remove the key"
            if fix:
                what = f"{self.place(key)} is not read, and may change what is to be learned"
                raise RowError(what, reason="key_not_read", fix=fix)
            yield str(key)


def is_filled(value: Any) -> bool:
    """Whether a value says anything: not null, nor an empty text, list or object."""
    return value is not None and not (isinstance(value, str | list | tuple | Mapping) and not value)


def told(unread: Collection[str]) -> tuple[str, str]:
    """The keys that are not read, and a question about those that nothing here knows; "" for none."""
    unknown = sorted(key for key in unread if key.rpartition(".")[2] not in KNOWN)
    asked = f"is {', '.join(unknown)} to be learned? If so, name it in columns of the source" if unknown else ""
    return ", ".join(sorted(unread)), asked
