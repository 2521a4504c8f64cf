"""All that is known of a tokenizer, as a value: no transformers, no file, cheap to send to another process.

model/tokenizer ─ vocabulary_of ─> Vocabulary ─> chat/encode
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dist_sft.core.errors import ModelError
from dist_sft.core.files import write_json


@dataclass(frozen=True)
class AddedToken:
    """A token that the tokenizer finds before it splits text. special: it steers the model, it is not text."""

    content: str
    id: int
    special: bool


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.

    backend         the JSON of its `tokenizers.Tokenizer`: the loaded one's, which may differ from tokenizer.json
    chat_template   Jinja source, or None
    special_tokens  text by name: bos_token, eos_token, pad_token, ...; what templates see under these names
    size            number of ids, added tokens included
    tool_template   the one of its chat templates that is for rows with tools (`tool_use`), or None
    """

    backend: str
    chat_template: str | None
    special_tokens: dict[str, str]
    size: int
    tool_template: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of all that decides ids."""
        parts = [self.backend, self.chat_template or "", json.dumps(self.special_tokens, sort_keys=True)]
        parts += [self.tool_template] if self.tool_template else []
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def added_tokens(self) -> tuple[AddedToken, ...]:
        named = set(self.special_tokens.values())
        added = self.outline()[0]["added_tokens"]
        return tuple(AddedToken(one["content"], one["id"], one["special"] or one["content"] in named) for one in added)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id by text, of added tokens only."""
        return {token.content: token.id for token in self.added_tokens}

    def id_of(self, name: str) -> int | None:
        """Id of a named token, e.g. id_of("eos_token"); None if there is none."""
        return self.ids.get(self.special_tokens.get(name, ""))

    def outline(self) -> tuple[dict[str, Any], str]:
        """The backend's JSON without its model, and the model's: megabytes of text that need no reading here."""
        head, found, model = self.backend.partition(',"model":')  # the last key, where `tokenizers` wrote it
        if found:
            parts: dict[str, Any] = json.loads(head + "}")
            if "post_processor" in parts and "added_tokens" in parts:
                return parts, model[:-1]
        parts = json.loads(self.backend)
        return parts, json.dumps(parts.pop("model"), ensure_ascii=False)

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: Path) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            ModelError: the file is missing or is not a vocabulary.
        """
        try:
            return Vocabulary(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"not a saved vocabulary: {error}", where=str(path), fix="delete it and run again"
            ) from None


def any_of(texts: Iterable[str]) -> str:
    """A pattern that matches each of these, the longest that it can; without any, nothing."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def exact_tokenizer(backend: str, added: Mapping[str, int]) -> Tokenizer:
    """The tokenizer of a JSON, with the ids that the JSON says.

    `tokenizers` counts added tokens anew as it loads them: where the ids in use have a hole (GPT-4o), the token that
    was added behind it would move into the hole. Written into the vocabulary as well, it stays.

    Args:
        added: id by text of its added tokens.
    Raises:
        ModelError: the ids would change, and the vocabulary is no map that could hold them.
    """
    tokenizer = Tokenizer.from_str(backend)
    if all(tokenizer.token_to_id(text) == id_ for text, id_ in added.items()):
        return tokenizer
    parts = json.loads(backend)
    vocabulary = parts["model"].get("vocab")
    if isinstance(vocabulary, dict):
        vocabulary.update(added)
        tokenizer = Tokenizer.from_str(json.dumps(parts, ensure_ascii=False))
    moved = [text for text, id_ in added.items() if tokenizer.token_to_id(text) != id_]
    if moved:
        raise ModelError(
            f"the ids of added tokens change when the tokenizer is loaded: {', '.join(moved[:3])}",
            where="tokenizer.json",
            fix="load it with AutoTokenizer, save it, and use what was saved",
        )
    return tokenizer
