"""A small chat model from random weights, and a tokenizer that knows the demo's words.

texts, seed -> folder that `AutoModelForCausalLM` and `AutoTokenizer` load
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY, WIDTH, LAYERS, HEADS = 1024, 128, 2, 4
THETA = 100.0
"""Base of the rotary positions. In chats so short, the usual 10000 makes it slow to learn what stands next to what."""
CONTEXT = 256
"""Longest conversation, tokens."""


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, lossless on any text, in which each word of the texts is a token or two."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHATML,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def model(seed: int, words: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of half a million parameters; the same weights for the same seed."""
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=CONTEXT,
        initializer_range=WIDTH**-0.5,  # not 0.02: embeddings that small drown in the noise of NEFTune
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def save(folder: Path, seed: int, texts: Iterable[str]) -> None:
    """Write model and tokenizer as a folder of safetensors and JSON."""
    words = tokenizer(texts)
    words.save_pretrained(folder)
    model(seed, words).save_pretrained(folder)
