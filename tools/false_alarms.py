"""Does a proof fail where nothing is wrong? On models whose weights are no noise, and on one from the hub.

    python -m tools.false_alarms                        four tiny models, trained here first, and SmolLM2-135M
    python -m tools.false_alarms --seeds 2 --models qwen3 gemma3

Each is proved as `check` does (in float64) and as a start of a run does (in float32 and bfloat16), with one thread and
with two, and with other samples for each seed. Prints the largest figure of each proof beside its limit; the exit code
is 1 where one is above it.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.utils import logging

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.load import load_config
from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import ModelError
from dist_sft.demo import model as demo
from dist_sft.demo.dataset import conversations
from dist_sft.model.configuration import load_configuration
from dist_sft.model.load import load
from dist_sft.model.rounding import EXACT, allowed
from dist_sft.proofs.head import check_head
from dist_sft.proofs.isolation import check_isolation
from dist_sft.proofs.noise import prove_noise
from dist_sft.proofs.packing import prove_packing
from dist_sft.run.data import RunData
from dist_sft.run.opened import open_run
from tools.registry import smollm2_model

SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
GEMMA3 = {
    "sliding_window": 16,
    "query_pre_attn_scalar": 16,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
KINDS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3": (Qwen3Config, {}),
    "gemma3": (Gemma3TextConfig, GEMMA3 | {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    "llama-tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama-untied": (LlamaConfig, {"tie_word_embeddings": False}),
}
TUNINGS = ({"kind": "lora", "rank": 16, "alpha": 32}, {"kind": "full"})
DTYPES = ("float32", "bfloat16")
SMOLLM2 = "smollm2-135m"
STEPS = 300
"""Of training, for a tiny model."""
Figures = dict[str, list[tuple[float, float]]]
"""Figure and limit of each proof."""


def trained(kind: str, folder: Path, steps: int) -> Path:
    """A tiny model that has learned the demo's chats for some hundred steps, with a plain loop of PyTorch."""
    texts = [turn["content"] for row in conversations(0, 400, held_out=False) for turn in row.messages]
    demo.save(folder, 0, texts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    of, more = KINDS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        of(**SIZE | more, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=0)
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = [tokenizer.encode(text, add_special_tokens=False)[:64] for text in texts]
    rows = [row for row in rows if len(row) > 3]
    for step in range(steps):
        batch = [torch.tensor(rows[(8 * step + i) % len(rows)]) for i in range(8)]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        seen = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
        loss = model(input_ids=ids, attention_mask=seen, labels=ids.masked_fill(seen == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{kind}: loss {loss.item():.2f} after {steps} steps", flush=True)  # noqa: T201
    model.save_pretrained(folder)
    return folder


def run_of(model: Path, rows: Path, tuning: dict[str, Any], dtype: str, seed: int) -> RunConfig:
    return load_config(
        {
            "run": {"name": "false_alarms", "dir": str(rows.parent / "run"), "seed": seed},
            "model": {"path": str(model), "dtype": dtype, "tuning": tuning, "neftune": {"alpha": 5}},
            "data": {"sources": [{"path": str(rows)}], "context_length": 512, "cache": str(rows.parent / "cache")},
            "train": {"samples_per_step": 8, "tokens_per_pack": 1024, "steps": 20},
            "cluster": {"workers": 1, "gpus_per_worker": 0},
            "deepspeed": {"zero_optimization": {"stage": 0}},
        }
    )


def prove(config: RunConfig, samples: list[EncodedSample], threads: tuple[int, ...], figures: Figures) -> None:
    """As `check` does, in float64. Adds to the figures."""
    architecture = load_configuration(config.model)
    assert config.model.neftune
    for count in threads:
        torch.set_num_threads(count)
        proofs = prove_packing(config, architecture, samples)
        proofs += prove_noise(
            config.model.neftune, samples, architecture.get_text_config().hidden_size, config.run.seed
        )
        for proof in proofs:
            if proof.figure is None or proof.limit is None:
                print(f"  {proof.name}: {proof.detail}", flush=True)  # noqa: T201
                figures[f"check: {proof.name}"].append((float("inf"), 0.0))
            else:
                figures[f"check: {proof.name}"].append((proof.figure, proof.limit))


def begin(config: RunConfig, threads: tuple[int, ...], figures: Figures) -> None:
    """As the start of a run does, in the run's dtype. Adds to the figures."""
    architecture, name = load_configuration(config.model), f"start, {config.model.dtype}"
    dtype, words = getattr(torch, config.model.dtype), architecture.get_text_config().vocab_size
    stage = {"zero_optimization": {"stage": 0}}
    engine = load(config.model, architecture, stage, config.run.seed, torch.device("cpu"), 1)
    for count in threads:
        torch.set_num_threads(count)
        try:
            found = check_isolation(engine, engine.module, words, config.data.context_length)
            limit = allowed(dtype, found.rounding)
            figures[f"{name}: a pack as its samples alone"].append((found.packed, limit))
            figures[f"{name}: other samples' and later tokens"].append((max(found.poisoned, found.future), EXACT))
            figures[f"{name}: head"].append((check_head(engine, engine.module, words), allowed(dtype)))
        except ModelError as error:
            print(f"  {name}: {error}", flush=True)  # noqa: T201
            figures[f"{name}: refused"].append((float("inf"), 0.0))


def soak(
    models: Sequence[str], seeds: int, threads: tuple[int, ...], folder: Path, steps: int = STEPS
) -> dict[str, Figures]:
    """The figures of each model's proofs. Half of the seeds train adapters, half all weights."""
    found: dict[str, Figures] = {}
    for name in models:
        path = smollm2_model() if name == SMOLLM2 else trained(name, folder / name, steps)
        rows = folder / name / "rows.jsonl"
        rows.parent.mkdir(exist_ok=True)
        chats = conversations(1, 80, held_out=False)
        rows.write_text("".join(json.dumps({"messages": list(row.messages)}) + "\n" for row in chats))
        data = RunData.of(open_run(run_of(path, rows, TUNINGS[0], "float32", 0)))
        samples, figures = list(data.train.rows.probe(data.train.steps, len(chats)).samples), defaultdict(list)
        for seed in range(seeds):
            tuning, chosen = TUNINGS[seed % 2], Random(seed).sample(samples, 16)
            prove(run_of(path, rows, tuning, "float32", seed), chosen, threads, figures)
            for dtype in DTYPES:
                begin(run_of(path, rows, tuning, dtype, seed), threads, figures)
        found[name] = figures
        show(name, figures)
    return found


def show(name: str, figures: Figures) -> None:
    """A line for each proof: the figure that came closest to its limit."""
    print(f"\n{name}")  # noqa: T201
    for proof, pairs in sorted(figures.items()):
        figure, limit = max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else pair[0])
        above = sum(not one <= most for one, most in pairs)
        print(f"  {proof:54} {figure:8.1e} of {limit:8.1e}, {above} of {len(pairs)} above", flush=True)  # noqa: T201


def alarms(found: dict[str, Figures]) -> list[str]:
    """Models and proofs with a figure above its limit."""
    return [
        f"{model}: {proof}"
        for model, figures in found.items()
        for proof, pairs in figures.items()
        if not all(figure <= limit for figure, limit in pairs)
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=[*KINDS, SMOLLM2], choices=[*KINDS, SMOLLM2])
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="dist_sft_alarms_") as folder:
        found = alarms(soak(options.models, options.seeds, (1, 2), Path(folder)))
    print(f"\n{len(found)} false alarms" + "".join(f"\n  {name}" for name in found))  # noqa: T201
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
