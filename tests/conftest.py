"""Fixtures that several folders of tests share."""

from tests.chat.registry import shared_data, tokenizer_folder
from tests.tiny import tiny_model, tiny_rows, tiny_run

__all__ = ["shared_data", "tiny_model", "tiny_rows", "tiny_run", "tokenizer_folder"]
