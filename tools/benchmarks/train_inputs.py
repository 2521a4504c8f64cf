"""What every system of train_throughput trains: one model, one set of chats, the same tokens and labels.

chats -> steps of two packs each -> JSONL of messages for us, Parquet of tokens and labels for the others

A step is as many chats as fill two packs. Chats are drawn until they do, for with a large file packs are full.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tools.benchmarks.chats import write_chats
from tools.benchmarks.measure import WORK

HIDDEN, LAYERS, HEADS, INNER = 384, 6, 6, 1024
CHAT = 250
"""Tokens of a chat on average: a step of 2 * pack tokens has 2 * pack // 256 chats."""
PACKS = 2
"""Packs of a step."""
VERSION = 5
"""Of what is on disk; another number makes it anew."""


@dataclass(frozen=True)
class Inputs:
    """model: its folder, with a tokenizer. chats: messages. rows, packed: tokens and labels; packed by TRL's packer.

    tokens, supervised, squares: by step, the last the sum of squared lengths.
    """

    model: Path
    chats: Path
    rows: Path
    packed: Path
    samples: int
    tokens: list[int]
    supervised: list[int]
    squares: list[int]


def prepare(vocabulary: int, pack: int, steps: int) -> Inputs:
    """Make what is not there yet."""
    folder = WORK / f"train-v{VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    pool = write_chats(folder / "pool.jsonl", rows=6000, mean_words=CHAT // 2, questions=0.75)
    words = _tokenizer(folder / "tokenizer", pool)
    model = _model(folder / f"llama-{vocabulary}", vocabulary, words)
    data = folder / f"pack{pack}-steps{steps}"
    if not (data / "facts.json").exists():
        data.mkdir(exist_ok=True)
        _draw(data, pool, model, pack, steps)
    facts = json.loads((data / "facts.json").read_text())
    return Inputs(model, data / "chats.jsonl", data / "rows.parquet", data / "packed.parquet", **facts)


def _tokenizer(folder: Path, pool: Path) -> Any:
    from transformers import AutoTokenizer

    from dist_sft.demo.model import tokenizer

    if not folder.exists():
        texts = (turn["content"] for line in pool.open() for turn in json.loads(line)["messages"])
        made = tokenizer(texts)
        made.model_max_length = 1 << 16
        made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _model(folder: Path, vocabulary: int, words: Any) -> Path:
    """A Llama of 22 million weights with 32,000 tokens, head and embedding tied; fixed random weights, in float32.

    They are numbers of bfloat16, so that every system begins with the same in either precision. With Llama's own width
    of 0.02, bfloat16 changes the first loss by a relative 1e-5, and samples that see each other change it by 5e-3 (of
    32,000 tokens; 5e-4 of 152,000). With 0.08, bfloat16 alone changes it by up to 2e-4.
    """
    if (folder / "config.json").exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=1 << 15,
        initializer_range=0.02,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().float().save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _draw(data: Path, pool: Path, model: Path, pack: int, steps: int) -> None:
    """Choose the chats of each step, and write them."""
    import datasets
    from trl import pack_dataset

    datasets.disable_progress_bars()
    encoded = _encoded(pool, model)
    lines = pool.read_text().splitlines()
    dice, count = random.Random(1), PACKS * pack // 256
    chosen: list[list[int]] = []
    usable = [i for i, (tokens, _) in enumerate(encoded) if len(tokens) <= pack * 0.75]
    while len(chosen) < steps:
        step = dice.sample(usable, count)
        lengths = [len(encoded[i][0]) for i in step]
        if 0.94 * PACKS * pack < sum(lengths) and _fits(lengths, pack):
            chosen.append(step)
    (data / "chats.jsonl").write_text("".join(lines[i] + "\n" for step in chosen for i in step))
    by_step = [datasets.Dataset.from_list([_row(*encoded[i]) for i in step]) for step in chosen]
    datasets.concatenate_datasets(by_step).to_parquet(data / "rows.parquet")
    packed = [pack_dataset(rows, pack, "bfd") for rows in by_step]
    assert all(len(part) == PACKS for part in packed), "TRL's packer needs more packs"
    datasets.concatenate_datasets(packed).to_parquet(data / "packed.parquet")
    facts = {
        "samples": count,
        "tokens": [sum(len(encoded[i][0]) for i in step) for step in chosen],
        "supervised": [int(sum((encoded[i][1] > 0).sum() for i in step)) for step in chosen],
        "squares": [sum(len(encoded[i][0]) ** 2 for i in step) for step in chosen],
    }
    (data / "facts.json").write_text(json.dumps(facts))


def _encoded(pool: Path, model: Path) -> list[tuple[Any, Any]]:
    """Tokens and loss weights of each chat, as our encoder makes them."""
    from dist_sft.chat.encode import Encoder
    from dist_sft.config.data import DataSection, LossWeights, Source
    from dist_sft.data.encoding import Rows
    from dist_sft.data.order import SampleId
    from dist_sft.model.tokenizer import load_tokenizer, vocabulary_of

    sources = (Source(path=str(pool), format="messages"),)
    with TemporaryDirectory(dir=WORK) as cache:
        settings = DataSection(sources=sources, cache=cache, context_length=1 << 15)
        encoder = Encoder(vocabulary_of(load_tokenizer(str(model))), "auto", LossWeights(), 1 << 15, "drop")
        rows = Rows(sources, settings, encoder)
        ids = [SampleId(row, 0, row) for row in range(rows.lengths[0])]
        samples = rows.encode(0, ids).samples
        return [(np.array(sample.tokens), np.array(sample.weights)) for sample in samples]


def _fits(lengths: list[int], pack: int) -> bool:
    """Whether best-fit decreasing needs no more than the packs of a step."""
    room = [pack] * PACKS
    for length in sorted(lengths, reverse=True):
        best = min((r for r in room if r >= length), default=None)
        if best is None:
            return False
        room[room.index(best)] -= length
    return True


def _row(tokens: Any, weights: Any) -> dict[str, list[int]]:
    return {"input_ids": tokens.tolist(), "labels": np.where(weights > 0, tokens, -100).tolist()}
