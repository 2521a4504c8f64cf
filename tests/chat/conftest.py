"""A tokenizer small enough to build in each test process: bytes are its letters, so any text is exactly its ids."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dist_sft.chat.vocabulary import Vocabulary

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end_of_text|>")
ADDED = ("<think>", "</think>", "<tool_call>", "</tool_call>", "\n\n")


@pytest.fixture(scope="session")
def tiny() -> Vocabulary:
    """Bytes, six special tokens, four that only templates write, and one ordinary added token (two newlines)."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in ADDED])
    named = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return Vocabulary(tokenizer.to_str(), None, named, tokenizer.get_vocab_size())


@pytest.fixture(scope="session")
def real_rows(request):
    """How many rows of each real file are looked at."""
    return 40 if request.config.getoption("--soak") else 12
