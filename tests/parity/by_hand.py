"""What anybody would write: transformers and torch in float64, one sample at a time. Nothing of dist_sft."""

from unittest import mock

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

RATES, MOMENTUM, EPS, DECAY = {"sgd": 0.02, "adamw": 0.01}, 0.9, 1e-2, 0.1
CLIP = {"full": 9.0, "lora": 4.0}


def encoded(tokenizer, row):
    """Ids and loss weights of a chat in ChatML: an answer runs from its header to <|im_end|>."""
    ids, weights = [], []
    for turn in row["messages"]:
        learned = turn.get("loss_weight", 1.0) if turn["role"] == "assistant" else 0.0
        for text, weight in (f"<|im_start|>{turn['role']}\n", 0), (f"{turn['content']}<|im_end|>", learned), ("\n", 0):
            part = tokenizer.encode(text, add_special_tokens=False)
            ids, weights = ids + part, weights + [weight] * len(part)
    return torch.tensor(ids), torch.tensor(weights, dtype=torch.float64)


def losses_by_group(path, rows, keys_of):
    """Loss, sum of loss weights and supervised tokens of each group of chats. keys_of: row -> its groups."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").double()
    tokenizer, found = AutoTokenizer.from_pretrained(path), {}
    for row in rows:
        ids, weights = encoded(tokenizer, row)
        with torch.no_grad(), mock.patch.object(torch, "float32", torch.float64):
            logits = model(ids[None], use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none") * weights[1:]
        more = losses.sum().item(), weights.sum().item(), int(weights.count_nonzero())
        for key in keys_of(row):
            found[key] = tuple(map(sum, zip(found.get(key, (0.0, 0.0, 0)), more, strict=True)))
    return {key: (total / weight, weight, tokens) for key, (total, weight, tokens) in found.items()}


def learned(path, steps, optimizer, adapters=None, scale=2.0):
    """Losses and gradient norms by step, and the weights in the end, by name.

    steps: of samples (ids, weights). adapters: lora_A and lora_B by name, where these are trained, and alpha / rank.
    """
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").double()
    trained = {name: p.double().detach().requires_grad_() for name, p in (adapters or {}).items()}
    for name in [name for name in trained if "lora_A" in name]:
        a, b, at = trained[name], trained[name.replace("lora_A", "lora_B")], name.split(".lora_A")[0]
        layer = model.get_submodule(at.removeprefix("base_model.model."))
        layer.register_forward_hook(lambda _, inputs, output, a=a, b=b: output + inputs[0] @ a.T @ b.T * scale)
    trained = trained or dict(model.named_parameters())
    matrices, vectors = ([p for p in trained.values() if (p.ndim == 2) == two] for two in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    if optimizer == "sgd":
        update = torch.optim.SGD(groups, lr=RATES["sgd"], momentum=MOMENTUM)
    else:
        update = torch.optim.AdamW(groups, lr=RATES["adamw"], eps=EPS)
    losses, norms = [], []
    for samples in steps:
        update.zero_grad()
        total, loss = sum(weights.sum() for _, weights in samples), 0.0
        for ids, weights in samples:
            with mock.patch.object(torch, "float32", torch.float64):  # in which norms and softmax would be computed
                logits = model(ids[None], use_cache=False).logits[0, :-1]
            part = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none") @ weights[1:] / total
            part.backward()
            loss += part.item()
        losses.append(loss)
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), CLIP["lora" if adapters else "full"]).item())
        update.step()
    return losses, norms, {name: p.detach() for name, p in trained.items()}
