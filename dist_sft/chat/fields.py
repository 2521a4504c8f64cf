"""Every filled key of a row, or of a turn, is read, or refused by name, or told as not read.

row ─ Fields ─ take ─> value
             └ rest ─> keys that nobody took; an error for one that would change what is learned
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from dist_sft.core.errors import RowError

_UNSEEN = "a run of text cannot see it: leave the row out, or remove the key if the text says enough without it"
_SWITCHES = ("on", "off", "true", "false")
_MASKS = "say it with loss_weight in each message, or with data.loss"

SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction", "systemInstruction")
"""Names of a system prompt beside turns, or beside question and answer."""
TOOLS = ("tools", "functions")
REASONINGS = ("reasoning_content", "reasoning", "thinking", "thought", "think", "cot", "chain_of_thought",
              "complex_cot", "reasoning_trace")  # fmt: skip
"""Names of a thought that stands beside an answer."""

CHANGES_LEARNING: dict[str, str] = {
    **dict.fromkeys(
        ("image", "images", "image_url", "audio", "audios", "speech", "video", "videos", "media", "pixel_values"),
        _UNSEEN,
    ),
    **dict.fromkeys(
        ("loss", "train", "training", "trainable", "learn", "loss_weight", "loss_weights", "weight", "weights",
         "sample_weight", "mask", "masks", "loss_mask", "train_mask", "assistant_mask", "assistant_masks",
         "completion_mask", "train_detail", "training_detail", "output_with_loss"), _MASKS
    ),
    **dict.fromkeys(
        (*SYSTEMS, "instructions"), 'write it as the first message: {"role": "system", "content": ...}'
    ),
    **dict.fromkeys(
        ("context", "contexts", "input", "history", "choices", "options"),
        "it may be part of the question: write it into the prompt, or remove the key",
    ),
    **dict.fromkeys(
        (*TOOLS, "tool_calls", "function_call", "available_tools", "tool_config", "toolConfig"),
        "use format messages, with tools beside them and tool_calls in the assistant's message",
    ),
    **dict.fromkeys(
        (*REASONINGS, "thoughts", "rationale", "thinking_trajectory", "thinking_trajectories"),
        "name it in columns of the source, e.g. columns: {reasoning: thoughts}, beside prompt and completion; or write "
        "it as reasoning_content into the assistant's message",
    ),
    **dict.fromkeys(
        ("chat_template", "chat_template_kwargs", "documents"),
        "no row has a template of its own here: set data.template, or remove the key",
    ),
}  # fmt: skip
"""Keys with a meaning for training wherever they stand, and what to do where a format does not read them."""

ENCODED = ("labels", "input_ids", "attention_mask", "token_ids", "tokens")
"""Keys that hold a row encoded elsewhere, where they hold lists."""
JUDGED = ("label", "labels", "kto_tag", "preference", "is_good", "desirable")
"""Keys that say of an answer whether it is a good one, where they hold true or false."""
PREFERRED = ("chosen", "chosen_messages", "chosen_response", "preferred_output", "response_j")
OTHERS = ("rejected", "rejected_messages", "rejected_response", "rejected_answer", "response_k",
          "non_preferred_output")  # fmt: skip
"""Keys of two answers to compare: the better one, and the other."""

KNOWN = frozenset({
    "parallel_tool_calls", "rank", "review_count", "review_result", "deleted", "synthetic", "model_name",
    "emojis", "labels", "message_tree_id", "tree_state", "created_date", "turn", "redacted", "toxic", "state",
    "country", "hashed_ip", "header", "conversation_hash", "openai_moderation", "detoxify_moderation", "detoxify",
    "task_id", "task_name", "task_type", "template_idx", "template_type", "seed", "raw_index", "views", "ability",
    "problem_type", "question_type", "source_type", "cot_type", "generation", "generated_by", "version", "unique_id",
    "subcategory", "subtopic", "subtask", "sub_topic", "final_label", "schemaVersion", "token_counts",
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
        self._inside: list[tuple[str, Fields]] = []

    def take(self, key: str) -> Any:
        """A value; None where there is none, or one that says nothing, as an empty list."""
        self._taken.add(key)
        value = self.values.get(key)
        return value if isinstance(value, str) or is_filled(value) else None

    @property
    def taken(self) -> dict[str, Any]:
        """What was taken, as it stands in the row."""
        return {key: value for key, value in self.values.items() if key in self._taken}

    def inside(self, key: str, values: Mapping[str, Any], number: int) -> "Fields":
        """A mapping in a list that was taken; its keys are accounted for with these."""
        fields = Fields(values, f"{self.place(key)}[{number}]")
        self._inside.append((f"{key}[]", fields))
        return fields

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
            if fix := _meant(key, value):
                what = f"{self.place(key)} is not read, and may change what is to be learned"
                raise RowError(what, reason="key_not_read", fix=fix)
            yield str(key)
        for key, fields in self._inside:
            yield from (f"{key}.{name}" for name in fields.rest())


def _meant(key: Any, value: Any) -> str | None:
    """What to do about a key that nobody took and that may change what is learned; None for another."""
    name = key.lower() if isinstance(key, str) else ""
    if name in ENCODED and listed(value) is not None:
        return "rows are encoded here, by the run's own tokenizer: give the text, and remove the key"
    if name in JUDGED and isinstance(value, bool):
        return "an answer that is marked as bad must not be learned: keep the rows that are good, and remove the key"
    if name in REASONINGS and is_flag(value):
        return None
    return CHANGES_LEARNING.get(key if key in CHANGES_LEARNING else name)


def is_flag(value: Any) -> bool:
    """Whether a value switches something on or off (Nemotron's "reasoning": "off"), so says nothing itself."""
    return value.strip().lower() in _SWITCHES if isinstance(value, str) else isinstance(value, bool)


def listed(value: Any) -> list[Any] | None:
    """The items of a list, or of what a table has in place of one; None for anything else."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else None


def is_filled(value: Any) -> bool:
    """Whether a value says anything: not null, nor an empty text, list or object."""
    return value is not None and not (isinstance(value, str | list | tuple | Mapping) and not value)


def told(unread: Collection[str]) -> tuple[str, str]:
    """The keys that are not read, and a question about those that nothing here knows; "" for none."""
    unknown = sorted(key for key in unread if key.rpartition(".")[2] not in KNOWN)
    asked = f"is {', '.join(unknown)} to be learned? If so, name it in columns of the source" if unknown else ""
    return ", ".join(sorted(unread)), asked
