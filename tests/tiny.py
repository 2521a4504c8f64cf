"""A model, a tokenizer and rows small enough to train in a second."""

import json

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a small random model that transformers loads."""
    from dist_sft.demo import model
    from dist_sft.demo.dataset import conversations

    folder = tmp_path_factory.mktemp("tiny_model")
    texts = [turn["content"] for row in conversations(seed=0, count=400, held_out=False) for turn in row.messages]
    model.save(folder, 0, texts)
    return folder


@pytest.fixture(scope="session")
def tied_model(tiny_model, tmp_path_factory):
    """The tiny model with its embedding for a head."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tied_model")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory):
    """A file of 60 chats of many lengths, some with weights of their own."""
    from dist_sft.demo.dataset import conversations

    path = tmp_path_factory.mktemp("tiny_rows") / "rows.jsonl"
    chats = []
    for i, row in enumerate(conversations(seed=1, count=60, held_out=False)):
        messages = [dict(turn) for turn in row.messages]
        if i % 7 == 0:
            messages[-1]["loss_weight"] = 0.5
        if i % 5 == 0:
            messages[0]["content"] += " please" * (i + 1)
        chats.append({"messages": messages})
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_model, tiny_rows):
    """Settings of a run on CPU, float32; tests add run, train.steps, cluster and deepspeed."""
    return {
        "model": {"path": str(tiny_model), "dtype": "float32"},
        "data": {"sources": [{"path": str(tiny_rows)}], "context_length": 256},
        "train": {"samples_per_step": 12, "tokens_per_pack": 2048, "steps": 5},
        "cluster": {"workers": 1, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": 0}},
    }
