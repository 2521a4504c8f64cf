"""The model that a run starts from, as far as it is known without its weights: each part is loaded once."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dist_sft.config.sections import ModelSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from dist_sft.chat.vocabulary import Vocabulary


@dataclass(frozen=True)
class Pretrained:
    """settings: path and revision of the model. Nothing is read before it is asked for; transformers takes seconds."""

    settings: ModelSection

    @cached_property
    def architecture(self) -> "PretrainedConfig":
        """config.json as transformers reads it. Whoever changes it changes a copy. Raises ModelError."""
        from dist_sft.model.architecture import load_architecture

        return load_architecture(self.settings)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """As transformers loads it. Whoever changes it changes a copy. Raises ModelError."""
        from dist_sft.model.tokenizer import load_tokenizer

        return load_tokenizer(self.settings.path, self.settings.revision, self.architecture)

    @cached_property
    def vocabulary(self) -> "Vocabulary":
        """The tokenizer without transformers, for `chat`. Raises ModelError."""
        from dist_sft.model.tokenizer import vocabulary_of

        return vocabulary_of(self.tokenizer)
