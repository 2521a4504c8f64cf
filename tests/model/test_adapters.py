"""An adapter changes nothing before the first update, names exactly what it names, and refuses what it cannot do."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen3Config

from dist_sft.config.sections import LoraTuning
from dist_sft.core.errors import ModelError
from dist_sft.model.adapters import principal, starts_of, trained_shapes, with_adapters

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 97}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, attention_bias=True),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=8, pad_token_id=None),
}
KINDS = {
    "plain": {},
    "rslora": {"scaling": "rslora"},
    "dora": {"dora": True},
    "pissa": {"init": "pissa"},
    "pissa-dora-head": {"init": "pissa", "dora": True, "scaling": "rslora", "targets": ["up_proj", "lm_head"]},
    "lora+": {"b_rate_ratio": 16},
    "whole": {"modules_to_save": ["lm_head", "embed_tokens", "norm"]},
    "embedding": {"targets": ["embed_tokens", "q_proj"], "dora": True},
}


def build(config, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def adapt(model, **tuning):
    return with_adapters(model, LoraTuning(kind="lora", **({"rank": 4} | tuning)), seed=3)


@torch.no_grad()
def logits(model):
    return model(torch.arange(20)[None]).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_function_of_the_model_is_unchanged_bit_for_bit_and_so_is_the_base(name, kind, dtype):
    model = build(CONFIGS[name], dtype)
    expected, weights = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    adapted = adapt(model, **KINDS[kind])
    assert torch.equal(logits(adapted), expected)
    for key, value in adapted.named_parameters():
        if not value.requires_grad:
            known = key.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
            assert torch.equal(value, weights[known]), key


@pytest.mark.parametrize("scaling", ["alpha/rank", "rslora"])
def test_pissa_starts_where_pefts_own_does(scaling):
    theirs = get_peft_model(
        build(CONFIGS["qwen3"]),
        LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights="pissa", task_type="CAUSAL_LM",
                   use_rslora=scaling == "rslora"),
    ).state_dict()  # fmt: skip
    starts = starts_of(adapt(build(CONFIGS["qwen3"]), init="pissa", scaling=scaling))
    assert len(starts) == 2 * 14
    for name in (name for name in starts if "lora_A" in name):
        b = name.replace("lora_A", "lora_B")
        torch.testing.assert_close(starts[b] @ starts[name], theirs[b] @ theirs[name], atol=1e-5, rtol=0)


def test_the_principal_part_is_the_best_of_its_rank():
    weight = build(CONFIGS["llama"]).model.layers[0].mlp.up_proj.weight.detach()
    a, b = principal(weight, 5, scale=2.0)
    left = torch.linalg.matrix_norm(weight - 2.0 * b @ a)
    torch.testing.assert_close(left, torch.linalg.svdvals(weight)[5:].norm())
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))


def test_a_start_that_was_kept_is_used_and_not_computed():
    kept = {
        name: torch.randn_like(start) for name, start in starts_of(adapt(build(CONFIGS["llama"]), init="pissa")).items()
    }
    expected = logits(build(CONFIGS["llama"]))
    adapted = with_adapters(build(CONFIGS["llama"]), LoraTuning(kind="lora", rank=4, init="pissa"), 3, kept)
    assert all(torch.equal(start, kept[name]) for name, start in starts_of(adapted).items())
    assert all(torch.equal(p, kept[name]) for name, p in adapted.named_parameters() if p.requires_grad)
    assert torch.equal(logits(adapted), expected)


def test_pissa_on_a_transposed_layer_starts_at_its_own_principal_part():
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=97, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model = build(config)
    weight, expected = model.transformer.h[0].mlp.c_fc.weight.detach().clone(), logits(model)
    starts = starts_of(adapt(model, init="pissa"))
    name = "base_model.model.transformer.h.0.mlp.c_fc.lora_{}.default.weight"
    u, s, v = torch.linalg.svd(weight.T)
    best = u[:, :4] @ torch.diag(s[:4]) @ v[:4]
    torch.testing.assert_close(8 * starts[name.format("B")] @ starts[name.format("A")], best)
    assert torch.equal(logits(model), expected)


def test_a_module_to_save_is_no_other_whose_name_ends_alike():
    names = {
        name for name in trained_shapes(adapt(build(CONFIGS["qwen3"]), modules_to_save=["norm"])) if "lora" not in name
    }
    assert names == {"base_model.model.model.norm.modules_to_save.default.weight"}


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_a_head_that_is_the_embedding_is_trained_as_one_with_it(saved):
    adapted = adapt(build(CONFIGS["llama-tied"]), modules_to_save=saved)
    assert adapted.get_output_embeddings().weight is adapted.get_input_embeddings().weight
    assert adapted.get_output_embeddings().weight.requires_grad


def test_what_cannot_be_adapted_is_refused():
    for tuning, message in (
        ({"modules_to_save": ["head"]}, "no module head with weights of its own"),
        ({"modules_to_save": ["mlp"]}, "no module mlp with weights of its own"),
        ({"targets": ["qq"]}, "LoRA cannot be put there"),
        ({"targets": ["q_proj", "v_porj"]}, "the model has no layer v_porj"),
        ({"targets": ["lm_head"], "dropout": 0.1}, "an adapter on the head cannot have dropout"),
        ({"targets": ".*_(head|proj)", "dropout": 0.1}, "an adapter on the head cannot have dropout"),
        ({"targets": ["embed_tokens"], "init": "pissa"}, "PiSSA is for linear layers"),
        ({"init": "pissa", "rank": 17}, "16 x 32, and has no 17 principal components"),
    ):
        with pytest.raises(ModelError, match=message):
            adapt(build(CONFIGS["llama"]), **tuning)
    padded = Gemma3TextConfig(**SMALL, pad_token_id=0)  # its embedding of padding is 0, and it is the head, too
    with pytest.raises(ModelError, match="1 outputs of lm_head have only zeros"):
        adapt(build(padded), targets=["lm_head"], dora=True)
    tied = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=97, tie_word_embeddings=True)
    with pytest.raises(ModelError, match="its head is its embedding"):
        adapt(build(tied), modules_to_save=["wte"])
