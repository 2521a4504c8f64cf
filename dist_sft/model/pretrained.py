"""The model that a run starts from, as far as it is known without its weights: each part is loaded once."""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.config.sections import ModelSection
from dist_sft.model.apart import STOPS, VOCABULARY, ask_once
from dist_sft.model.architecture import Architecture
from dist_sft.model.tokenizer import load_tokenizer, vocabulary_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pretrained:
    """Nothing is read before it is asked for.

    settings  path and revision of the model
    cache     folder for what transformers takes seconds to say; None: nothing is kept
    """

    settings: ModelSection
    cache: Path | None = None

    @cached_property
    def architecture(self) -> Architecture:
        """Its config.json, and what follows from it. Raises ModelError."""
        return Architecture.load(self.settings, self.cache)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """As transformers loads it. Whoever changes it changes a copy. Raises ModelError."""
        return load_tokenizer(self.settings.path, self.settings.revision, self.architecture.configuration)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer without transformers, for `chat`. Raises ModelError."""
        if "tokenizer" in vars(self):
            return vocabulary_of(self.tokenizer)
        return Vocabulary(
            **ask_once(self.settings, self.cache, VOCABULARY, lambda: asdict(vocabulary_of(self.tokenizer)))
        )

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Ids on which generation with it stops. Raises ModelError."""

        def here() -> dict[str, list[int]]:
            from dist_sft.model.generation import stops_of_base

            return {"ids": stops_of_base(self.settings)}

        return tuple(ask_once(self.settings, self.cache, STOPS, here)["ids"])
