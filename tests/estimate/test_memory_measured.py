"""Estimates of memory, against what real ranks on CPU held at the height of a step, beyond their base."""

import json

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dist_sft.config.run_config import RunConfig
from dist_sft.estimate.memory import estimate
from dist_sft.estimate.traffic import Sizes
from dist_sft.run.opened import open_run
from tests.measured import measure_on_ranks

pytestmark = pytest.mark.xdist_group("measured")  # no other process of ours makes these slow

SAMPLES = 12
"""Equal samples of a pack, which they fill."""
HALVES = {
    "mixed": {"full, recomputed": ("full", True), "lora, kept": ("lora", False)},
    "alike": {"full, kept": ("full", False), "lora, recomputed": ("lora", True)},
}
"""Each kind of tuning and each treatment of activations, in either half: (kind, recomputed)."""


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A Llama of 5 M parameters: with its states and activations 100 to 300 MB, far above what is not counted."""
    folder = tmp_path_factory.mktemp("measured") / "model"
    words = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=words.eos_token_id, bos_token_id=None,
        pad_token_id=words.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats(model):
    """A file of equal chats, and the tokens of each."""
    turns = [{"role": "user", "content": "please " * 30}, {"role": "assistant", "content": "please " * 30}]
    path = model.parent / "rows.jsonl"
    path.write_text((json.dumps({"messages": turns}) + "\n") * 64)
    return path, len(AutoTokenizer.from_pretrained(model).apply_chat_template(turns, return_dict=False))


def settings(model, chats, world, stage, kind, again, folder):
    path, length = chats
    tuning = {"kind": "full"} if kind == "full" else {"kind": "lora", "rank": 16}
    return {
        "run": {"dir": str(folder)},
        "model": {"path": str(model), "dtype": "float32", "tuning": tuning, "gradient_checkpointing": again},
        "data": {"sources": [{"path": str(path)}], "context_length": 512},
        "train": {"samples_per_step": SAMPLES * world, "tokens_per_pack": SAMPLES * length, "steps": 4},
        "cluster": {"workers": world, "gpus_per_worker": 0},
        "checkpoint": {"every": 100, "behind": False},
        "deepspeed": {
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 1_000_000,
                                  "stage3_prefetch_bucket_size": 500_000},
            "data_types": {"grad_accum_dtype": "fp32"},
        },
    }  # fmt: skip


CASES = [(stage, world, half) for world in (1, 2) for half in HALVES for stage in (0, 3)]
ORDINARY = ((3, 2, "alike"),)
"""Both kinds, both treatments, and what ranks share."""


@pytest.mark.parametrize(
    ("stage", "world", "half"),
    [*ORDINARY, *(pytest.param(*case, marks=pytest.mark.soak) for case in CASES if case not in ORDINARY)],
)
def test_the_peak_of_a_step_is_within_15_percent(model, chats, stage, world, half, tmp_path, monkeypatch):
    runs = {f"ZeRO-{stage}, {each}": settings(model, chats, world, stage, *HALVES[half][each], tmp_path / each)
            for each in HALVES[half]}  # fmt: skip
    first = next(iter(runs.values())) | {"run": {"dir": str(tmp_path / "first")}}  # fills the libraries' own buffers
    first["train"] = first["train"] | {"steps": 1}
    measured = measure_on_ranks([first, *runs.values()], world, monkeypatch)[1:]
    off = {}
    for (name, values), ranks in zip(runs.items(), measured, strict=True):
        config = RunConfig.model_validate(values)
        opened = open_run(config)
        architecture, merged = opened.architecture, opened.deepspeed_for(world, "cpu")
        sizes = Sizes.of(config, architecture, merged)
        memory = estimate(
            config,
            architecture,
            merged,
            sizes.all,
            sizes.trained,
            "cpu",
            1,
            supervised=0.5,
            persistent=sizes.persistent,
        )
        peak = max(rank["peak"] for rank in ranks)
        off[name] = memory.device / peak - 1
        print(f"{name}, {world} ranks: {memory.device / 2**20:.0f} MiB, measured {peak / 2**20:.0f} ({off[name]:+.0%})")
    assert all(abs(value) <= 0.15 for value in off.values()), off
