"""The advisor counts what peft would train, and its rules say what their sources say."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config

from dist_sft.config.document import Document
from dist_sft.config.presets import apply_preset
from dist_sft.config.run_config import RunConfig
from dist_sft.config.sections import FullTuning, LoraTuning
from dist_sft.core.errors import ModelError
from dist_sft.estimate.advice import DataFacts, advise, change_of, lines, usual_rates
from dist_sft.model.adapters import with_adapters
from dist_sft.model.architecture import Architecture
from dist_sft.model.capacity import count_trained

SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
         "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 211}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, attention_bias=True),
    "gemma3": Gemma3TextConfig(**SMALL),
    "gpt2": GPT2Config(n_embd=48, n_layer=3, n_head=6, vocab_size=211),
    "llama-3.1-8b": LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                                num_attention_heads=32, num_key_value_heads=8, vocab_size=128256),
    "qwen3-0.6b": Qwen3Config(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
                              num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True),
    "gemma-3-1b": Gemma3TextConfig(hidden_size=1152, intermediate_size=6912, num_hidden_layers=26,
                                   num_attention_heads=4, num_key_value_heads=1, head_dim=256, vocab_size=262144),
}  # fmt: skip
TUNINGS = {
    "all-linear": {},
    "dora": {"dora": True},
    "attention": {"targets": ["q_proj", "v_proj"]},
    "head": {"targets": ["o_proj", "lm_head"], "dora": True},
    "embedding": {"targets": ["embed_tokens", "gate_proj"]},
    "expression": {"targets": r".*\.mlp\.(up|down)_proj"},
    "whole": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "norms": {"modules_to_save": ["input_layernorm", "norm"], "dora": True},
}


COUNTED = [
    (name, tuning) for name in CONFIGS for tuning in TUNINGS if name != "gpt2" or tuning in ("all-linear", "dora")
]


@pytest.mark.parametrize(("name", "tuning"), COUNTED)
def test_the_count_of_parameters_is_that_of_peft(name, tuning):
    settings = LoraTuning(kind="lora", rank=8, **TUNINGS[tuning])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
        base = sum(p.numel() for p in model.parameters())
        adapted = with_adapters(model, settings, 0)
    layout = Architecture.of(CONFIGS[name]).layout
    trained = count_trained(layout, settings)
    assert trained.total == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained.base == base == count_trained(layout, FullTuning()).total


def test_coverage_is_the_share_of_linear_weights_without_the_head():
    layout = Architecture.of(CONFIGS["llama"]).layout
    assert count_trained(layout, LoraTuning(kind="lora")).covered == 1
    attention, mlp = 48 * 8 * (2 * 6 + 2 * 2), 3 * 48 * 80
    found = count_trained(layout, LoraTuning(kind="lora", targets=("q_proj", "k_proj", "v_proj", "o_proj"))).covered
    assert found == pytest.approx(attention / (attention + mlp))


def run(tuning=None, **train):
    return RunConfig.model_validate(
        {
            "model": {"path": "x", "tuning": tuning or {"kind": "lora", "rank": 16}},
            "data": {"sources": [{"path": "x"}]},
            "train": {"epochs": 1, "samples_per_step": 32, "learning_rate": 2e-4} | train,
        }
    )


LLAMA, FULL = Architecture.of(CONFIGS["llama-3.1-8b"]), {"kind": "full"}
CHATS = DataFacts(rows=100_000, supervised=20_000_000, epochs=1, text=0.0)
PAGES = DataFacts(rows=10_000_000, supervised=20_000_000_000, epochs=1, text=1.0)


def say(config, data, architecture=LLAMA):
    return {one.topic: one for one in advise(config, architecture, data)}


def test_a_hundred_thousand_chats_with_lora_need_nothing():
    assert {one.level for one in say(run(), CHATS).values()} == {"fine"}
    assert "why" not in " ".join(lines(list(say(run(), CHATS).values())))


def test_the_figures_are_those_of_the_model():
    figures = say(run(), CHATS)["capacity"].figures
    assert figures == {"trained parameters": 41_943_040, "bits that fit": 83_886_080, "bits at most": 20_000_000}


def test_billions_of_tokens_are_knowledge_which_an_adapter_underfits():
    said = say(run(), PAGES)
    assert said["change"].level == "change" and "knowledge" in said["change"].verdict
    assert said["change"].set == said["capacity"].set == "model.tuning={kind: full}"
    assert "Biderman" in said["change"].why
    full = say(run(FULL, learning_rate=2e-5), PAGES)
    assert full["change"].level == full["forgetting"].level == "fine" and "targets" not in full


def test_plain_text_is_knowledge_and_a_little_of_it_is_replay():
    per_rank = count_trained(LLAMA.layout, LoraTuning(kind="lora", rank=1)).total
    few = 1_000_000
    assert change_of(DataFacts(1000, few, 1, text=0.9), per_rank) == "knowledge"
    assert change_of(DataFacts(1000, few, 1, text=0.05), per_rank) == "behaviour"
    assert change_of(DataFacts(1000, 500_000_000, 1, text=0.05), per_rank) == "between"
    assert change_of(DataFacts(1000, 2_000_000_000, 1, text=0.05), per_rank) == "knowledge"


def test_an_adapter_that_is_too_small_is_told_the_rank_that_would_do():
    many = DataFacts(rows=1_000_000, supervised=200_000_000, epochs=2, text=0.0)
    advice = say(run(), many)["capacity"]
    assert advice.level == "change" and advice.set == "model.tuning.rank=64"
    assert say(run({"kind": "lora", "rank": 64}), many)["capacity"].level == "fine"
    assert say(run({"kind": "lora", "rank": 32}), many)["capacity"].level == "change"


def test_a_second_pass_adds_no_information():
    once, often = (DataFacts(100_000, 80_000_000, epochs, 0.0) for epochs in (1, 9))
    assert say(run(), once)["capacity"] == say(run(), often)["capacity"]


def test_the_learning_rate_is_held_against_the_method():
    low, high = say(run(learning_rate=5e-6), CHATS), say(run(FULL, learning_rate=5e-4), CHATS)
    assert (low["learning rate"].level, low["learning rate"].verdict) == ("change", "low for an adapter")
    assert low["learning rate"].set == "train.learning_rate=0.0003"
    assert (high["learning rate"].level, high["learning rate"].set) == ("change", "train.learning_rate=3e-05")
    assert say(run(FULL, learning_rate=2e-5), CHATS)["learning rate"].level == "fine"


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-0.6b", "gemma-3-1b"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("preset", ["full", "lora", "distill"])
def test_the_learning_rate_of_a_published_recipe_is_not_to_be_changed(preset, tuning, model):
    if (preset, tuning) == ("lora", "full"):
        return
    filled = apply_preset(Document({"model": {"tuning": {"kind": tuning}}, "train": {"preset": preset}}, {}))
    rate = filled.value["train"]["learning_rate"]
    advice = say(run({"kind": tuning}, learning_rate=rate), CHATS, Architecture.of(CONFIGS[model]))["learning rate"]
    assert advice.level != "change", advice


def test_a_layer_that_the_model_does_not_have_is_no_target():
    with pytest.raises(ModelError, match="the model has no layer q_porj") as error:
        say(run({"kind": "lora", "targets": ["q_porj"]}), CHATS)
    assert "q_proj" in error.value.fix


def test_a_larger_scale_wants_a_lower_learning_rate():
    plain = say(run(), CHATS)["learning rate"].figures
    stable = say(run({"kind": "lora", "rank": 16, "scaling": "rslora"}), CHATS)["learning rate"].figures
    assert stable["scale times rank"] == 4 * plain["scale times rank"] == 128
    assert stable["usual from"] == pytest.approx(plain["usual from"] / 4)


def test_short_runs_take_a_higher_learning_rate():
    short = say(run(epochs=None, steps=50), CHATS)["learning rate"].figures
    assert short["usual from"] == pytest.approx(1.5 * say(run(), CHATS)["learning rate"].figures["usual from"])


def test_the_usual_rate_falls_with_the_width_by_family():
    assert usual_rates("llama", 2000) == (5e-5, 5e-5)
    assert usual_rates("llama", 4096)[0] == pytest.approx(5e-5 * (2000 / 4096) ** 0.781)
    assert usual_rates("qwen3", 4096)[0] == pytest.approx(5e-5 * (2000 / 4096) ** 0.0775)
    assert usual_rates("gemma3_text", 4096) == (usual_rates("llama", 4096)[0], usual_rates("qwen3", 4096)[0])


def test_adapters_on_attention_alone_are_advised_against():
    advice = say(run({"kind": "lora", "targets": ["q_proj", "v_proj"]}), CHATS)["targets"]
    assert advice.level == "consider" and advice.set == "model.tuning.targets=all-linear"
    assert advice.figures["share of linear weights with an adapter"] < 0.15


def test_adapters_want_small_steps_and_full_tuning_does_not_care():
    levels = [say(run(samples_per_step=size), CHATS)["step size"].level for size in (32, 64, 128, 256)]
    assert levels == ["fine", "fine", "consider", "change"]
    assert "step size" not in say(run(FULL), CHATS)


def test_full_tuning_on_chats_is_told_of_adapters_and_of_replay():
    said = say(run(FULL, learning_rate=2e-5), CHATS)
    assert said["change"].level == said["forgetting"].level == "consider"
    assert "token_share: 0.05" in said["forgetting"].set
    replayed = DataFacts(100_000, 20_000_000, 1, text=0.05)
    assert say(run(FULL, learning_rate=2e-5), replayed)["forgetting"].level == "fine"


def test_a_line_has_verdict_figures_what_to_set_and_why():
    shown = list(lines([say(run(learning_rate=1e-5), CHATS)["learning rate"]]))
    assert shown[0].startswith("learning rate: low for an adapter (learning rate 1e-05, usual from 0.000286")
    assert shown[1] == "  set train.learning_rate=0.0003"
    assert shown[2].startswith("  why: LoRA takes about 10 times")
