"""A run with an adapter equals plain peft, one sample at a time, with peft's own LoRA+ optimizer and its own PiSSA."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from dist_sft.core import seeds
from dist_sft.data.order import Order, Steps
from tests.parity.by_hand import encoded
from tests.ranks import losses, records, train_on_ranks

STEPS, SAMPLES, RATE, CLIP, SEED = 4, 12, 0.005, 1.0, 5
SAVED = ["lm_head", "embed_tokens"]
KINDS = {
    "rslora": ({"scaling": "rslora"}, {"use_rslora": True}),
    "dora": ({"dora": True}, {"use_dora": True}),
    "pissa": ({"init": "pissa"}, {"init_lora_weights": "pissa"}),
    "pissa-dora": ({"init": "pissa", "dora": True}, {"init_lora_weights": "pissa", "use_dora": True}),
    "lora+": ({"b_rate_ratio": 16}, {}),
    "whole": ({"modules_to_save": SAVED}, {"modules_to_save": SAVED}),
}


def plain_peft(path, ratio, **settings):
    torch.manual_seed(seeds.key(SEED, "lora") % 2**63)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(base, config)
    return model, create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=ratio, eps=1e-2)


def by_hand(model, optimizer, samples_by_step):
    """Losses and gradient norms of the updates."""
    history = []
    for samples in samples_by_step:
        optimizer.zero_grad()
        total, loss = sum(float(weights.sum()) for _, weights in samples), 0.0
        for ids, weights in samples:
            nll = torch.nn.functional.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
            part = (nll * weights[1:]).sum() / total
            part.backward()
            loss += part.item()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        optimizer.step()
        history.append((loss, norm))
    return history


def samples_by_step(tokenizer, path):
    """What each step learns: ids and weights of the rows that the order of the run puts there."""
    with open(path) as file:
        rows = [json.loads(line) for line in file]
    steps = Steps.of(Order.shuffled([len(rows)], SEED), SAMPLES, STEPS, None)
    return [[encoded(tokenizer, rows[sample.row]) for sample in steps.samples(step)] for step in range(STEPS)]


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain_peft")
    train = {"steps": STEPS, "learning_rate": RATE, "schedule": "constant", "warmup": 0, "optimizer": {"eps": 1e-2}}
    base = tiny_run | {
        "train": tiny_run["train"] | train,
        "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
        "cluster": {"workers": 2, "gpus_per_worker": 0},
    }
    settings = [
        base
        | {
            "run": {"name": kind, "dir": str(folder / kind), "seed": SEED},
            "model": tiny_run["model"] | {"tuning": {"kind": "lora", "rank": 4, "alpha": 8, **ours}},
        }
        for kind, (ours, _) in KINDS.items()
    ]
    train_on_ranks(settings, 2)
    return folder


@pytest.mark.xdist_group("plain-peft")
@pytest.mark.parametrize("kind", KINDS)
def test_two_sharded_ranks_with_packing_learn_what_plain_peft_learns(runs, kind, tiny_run):
    path, (ours, theirs) = tiny_run["model"]["path"], KINDS[kind]
    model, optimizer = plain_peft(path, ours.get("b_rate_ratio", 1), **theirs)
    samples = samples_by_step(AutoTokenizer.from_pretrained(path), tiny_run["data"]["sources"][0]["path"])
    history = by_hand(model, optimizer, samples)
    assert list(losses(runs / kind).values()) == pytest.approx([loss for loss, _ in history], abs=1e-5)
    assert [r["grad_norm"] for r in records(runs / kind)] == pytest.approx([norm for _, norm in history], rel=1e-4)
    assert history[-1][0] < history[0][0] - 0.05
