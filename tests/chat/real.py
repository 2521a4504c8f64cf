"""Real tokenizers, loaded once by the worker that runs all tests of them (see tests/conftest.py)."""

from functools import cache

from transformers import AutoTokenizer

from dist_sft.chat.encode import Encoder
from dist_sft.chat.formats import parse_row
from dist_sft.config.data import LossWeights
from dist_sft.model.tokenizer import load_tokenizer, vocabulary_of
from tests.chat import oracle

MODELS = ("qwen3", "llama3_1", "gemma3", "smollm2")
TOOL_FILES = ("lf_reason_tool_use_demo_50.jsonl", "lf_glaive_toolcall_en_demo.json")
CHAT_FILES = (
    "lf_v1_sft_demo.jsonl", "fc_dummy_conversation.json", "gpteacher_codegen.json", "gpteacher_roleplay.json",
    "gsm8k_train.jsonl", "xstest_completions_gpt4.csv", "xstest_completions_llama2new.csv",
    "xstest_completions_mistralinstruct.csv",
)  # fmt: skip


@cache
def judge(folder):
    """The tokenizer as transformers loads it."""
    return AutoTokenizer.from_pretrained(folder)


@cache
def vocabulary(folder):
    return vocabulary_of(load_tokenizer(str(folder)))


@cache
def encoder_of(folder, template="auto", reasoning=True):
    return Encoder(vocabulary(folder), template, LossWeights(reasoning=reasoning), 1 << 20, "error")


def items(shared_data, files, count):
    """The first rows of each file, parsed."""
    return [parse_row(row) for file in files for row in oracle.read(shared_data / file, count)]
