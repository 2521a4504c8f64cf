"""A tokenizer that cannot be had says so."""

import pytest

from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.core.errors import ModelError
from dist_sft.model.tokenizer import load_tokenizer


def test_a_folder_without_a_tokenizer_is_named_with_what_to_do(tmp_path):
    with pytest.raises(ModelError) as caught:
        load_tokenizer(str(tmp_path))
    assert caught.value.what == "the folder holds no tokenizer"
    assert caught.value.where == str(tmp_path) and "tokenizer.json" in caught.value.fix


def test_a_half_written_vocabulary_is_not_read(tmp_path):
    (tmp_path / "v.json").write_text('{"backend": ')
    with pytest.raises(ModelError, match="not a saved vocabulary"):
        Vocabulary.load(tmp_path / "v.json")
