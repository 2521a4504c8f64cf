"""A run equals what anybody would write by hand: transformers one sample at a time, torch's AdamW, no DeepSpeed."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dist_sft.checkpoint.consolidate import consolidated
from dist_sft.checkpoint.layout import newest
from dist_sft.data.order import Order, Steps
from tests.ranks import losses, records, train_on_ranks

STEPS, RATE, CLIP = 4, 0.01, 1.0


def tokens_and_weights(tokenizer, messages):
    """The demo's template is ChatML: an answer runs from its header to <|im_end|>."""
    ids, weights = [], []
    for message in messages:
        learned = message["role"] == "assistant"
        parts = [(f"<|im_start|>{message['role']}\n", 0), (f"{message['content']}<|im_end|>", learned), ("\n", 0)]
        for text, weight in parts:
            part = tokenizer.encode(text, add_special_tokens=False)
            ids += part
            weights += [weight * message.get("loss_weight", 1.0)] * len(part)
    return torch.tensor(ids), torch.tensor(weights)


def plain_model(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")


def by_hand(model, optimizer, tokenizer, rows, samples):
    """Losses and gradient norms of `STEPS` updates; samples[step] are row numbers."""
    history = []
    for step in range(STEPS):
        encoded = [tokens_and_weights(tokenizer, rows[row]["messages"]) for row in samples[step]]
        total = sum(float(weights.sum()) for _, weights in encoded)
        loss = 0.0
        optimizer.zero_grad()
        for ids, weights in encoded:
            logits = model(ids[None]).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            part = (nll * weights[1:]).sum() / total
            part.backward()
            loss += part.item()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        optimizer.step()
        history.append((loss, norm))
    return history


def samples_by_step(path, seed):
    """The rows of a file, and the row numbers of each step."""
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    steps = Steps.of(Order.shuffled([len(rows)], seed), 12, STEPS, None)
    return rows, [[sample.row for sample in steps.samples(step)] for step in range(STEPS)]


@pytest.mark.xdist_group("parity")
def test_two_sharded_ranks_with_packing_learn_what_a_plain_loop_learns(tiny_run, tmp_path):
    train = {"steps": STEPS, "learning_rate": RATE, "schedule": "constant", "warmup": 0, "clip": CLIP}
    settings = tiny_run | {
        "run": {"name": "plain", "dir": str(tmp_path / "run"), "seed": 5},
        "train": tiny_run["train"] | train | {"optimizer": {"eps": 1e-2}},
        "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
        "cluster": {"workers": 2, "gpus_per_worker": 0},
    }
    train_on_ranks([settings], 2)
    model = plain_model(tiny_run["model"]["path"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-2, weight_decay=0.0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_run["model"]["path"])
    history = by_hand(model, optimizer, tokenizer, *samples_by_step(settings["data"]["sources"][0]["path"], 5))
    weights = model.state_dict()
    assert list(losses(tmp_path / "run").values()) == pytest.approx([loss for loss, _ in history], abs=1e-5)
    assert [r["grad_norm"] for r in records(tmp_path / "run")] == pytest.approx([n for _, n in history], rel=1e-4)
    for name, value in consolidated(newest(tmp_path / "run")).items():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=0, msg=name)
