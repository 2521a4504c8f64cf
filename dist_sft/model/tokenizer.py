"""A tokenizer of transformers -> Vocabulary, and back into an export folder.

hub id or folder ─ load_tokenizer ─┬─ vocabulary_of ─> Vocabulary ─> chat/encode
                                   └─ save_tokenizer ─> run folder, export
"""

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_sft.chat.templates import ChatTemplate
from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def load_tokenizer(
    path: str, revision: str | None = None, architecture: "PretrainedConfig | None" = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, as AutoTokenizer loads it (which may change what tokenizer.json says).

    architecture: of the model, where it is known; else its config.json is read. Raises ModelError.
    """
    from transformers import AutoTokenizer  # 4 s and 250 MB: only where a tokenizer is really loaded

    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            "the folder holds no tokenizer",
            where=path,
            fix=f"put {' and '.join(TOKENIZER_FILES)} beside its config.json",
        )
    try:
        return AutoTokenizer.from_pretrained(path, config=architecture, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ModelError(
            f"no tokenizer can be loaded: {first_line}",
            where=path,
            fix="set model.path to a folder with tokenizer.json, or to a hub id within reach",
        ) from error


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase") -> Vocabulary:
    """What `chat` needs of a tokenizer. Raises ModelError for one without a Rust backend."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            "the tokenizer has no tokenizer.json (Rust backend)",
            where=tokenizer.name_or_path,
            fix="convert it: AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)",
        )
    template: Any = tokenizer.chat_template
    with_tools = None
    if isinstance(template, dict):
        template, with_tools = template.get("default"), template.get("tool_use")
    named = {name: str(text) for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)}
    return Vocabulary(backend.to_str(), template or None, named, len(tokenizer), with_tools)


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate, folder: Path) -> None:
    """Write a tokenizer into a folder, with a chat template in place of its own.

    template: the one that the tuning used, see `Encoder.template`.
    folder: where `AutoTokenizer.from_pretrained` shall find it.
    """
    saved = copy(tokenizer)
    saved.chat_template = template.saved
    saved.save_pretrained(folder)
