"""The demo's model and tokenizer load as any other, and its answers are scored as a reader would."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dist_sft.demo import model
from dist_sft.demo.answers import Answer, ask, score, score_by_kind
from dist_sft.demo.dataset import Row, conversations


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return conversations(0, 600, held_out=False)


@pytest.fixture(scope="module")
def held_out() -> list[Row]:
    return conversations(0, 48, held_out=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rows: list[Row]) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save(folder, 0, texts(rows))
    return folder


def texts(rows: list[Row]) -> list[str]:
    return [turn["content"] for row in rows for turn in row.messages]


def test_the_tokenizer_gives_back_any_text(folder: Path, rows: list[Row]):
    words = AutoTokenizer.from_pretrained(folder)
    for text in [*texts(rows[:100]), "  two  spaces\n\nÆther, 猫 and 🐈\t", "never seen: Zyzzyva"]:
        assert words.decode(words(text).input_ids) == text


def test_the_template_survives_saving_and_marks_turns_with_single_tokens(folder: Path):
    words = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": 'Say "dog"'}]
    ids = words.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert words.decode(ids) == (
        '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSay "dog"<|im_end|>\n<|im_start|>assistant\n'
    )
    assert ids.count(words.convert_tokens_to_ids("<|im_start|>")) == 3
    assert ids.count(words.eos_token_id) == 2 and words.eos_token == "<|im_end|>"
    assert words.pad_token_id not in (None, words.eos_token_id)


def test_the_model_is_as_large_as_the_tokenizer_and_knows_where_to_stop(folder: Path):
    words, net = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert net.get_input_embeddings().num_embeddings == len(words) == net.config.vocab_size
    assert net.generation_config.eos_token_id == words.eos_token_id


def test_the_same_seed_gives_the_same_files(folder: Path, rows: list[Row], tmp_path: Path):
    torch.manual_seed(99)  # what was drawn before does not matter
    model.save(tmp_path / "same", 0, texts(rows))
    model.save(tmp_path / "other", 1, texts(rows))
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "other/model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_a_batch_gives_each_row_the_answer_it_gets_alone(folder: Path, held_out: list[Row]):
    rows = sorted(held_out, key=lambda row: len(str(row.prompt)))[:: len(held_out) // 6]
    alone = [ask(folder, [row])[0] for row in rows]
    assert ask(folder, rows) == alone


def test_an_untrained_model_knows_nothing(folder: Path, held_out: list[Row]):
    answers = ask(folder, held_out)
    assert [answer.row for answer in answers] == held_out
    assert score(answers) < 0.05


def test_only_an_exact_match_is_right(held_out: list[Row]):
    first, second = held_out[:2]
    answers = [Answer(first, first.answer), Answer(first, first.answer + " "), Answer(second, second.answer)]
    assert score(answers) == pytest.approx(2 / 3)
    assert score_by_kind(answers) == {first.kind: 0.5, second.kind: 1.0}
