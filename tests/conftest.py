"""Fixtures that several folders of tests share."""

import pytest

from tests.chat.registry import shared_data, tokenizer_folder
from tests.tiny import tiny_model, tiny_rows, tiny_run

__all__ = ["shared_data", "tiny_model", "tiny_rows", "tiny_run", "tokenizer_folder"]


def pytest_addoption(parser):
    parser.addoption("--soak", action="store_true", help="also run the long random-kill and endurance tests")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--soak"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="long; run with --soak"))
