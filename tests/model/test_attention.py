"""Attention inside samples only, for every model type that we can build here."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CodeGenConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.evaluate.held_out import negative_log_likelihood
from dist_sft.model import attention
from dist_sft.model.architecture import Architecture
from dist_sft.model.context import PackContext
from dist_sft.model.head import attach_head
from dist_sft.model.packed import PackedModel
from dist_sft.model.supported import refuse_unsupported
from dist_sft.proofs.isolation import check_isolation

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2-sliding": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "mistral-sliding": MistralConfig(**SMALL, sliding_window=4),
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "gemma2-softcap": Gemma2Config(**SMALL, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "gemma3-sliding": Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0, n_positions=128),
}


def build(config, implementation=attention.SEGMENTS):
    attention.register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=implementation)
    model.config.use_cache = False
    context = PackContext()
    context.attach(model)
    attach_head(model, context)
    return PackedModel(model.eval(), context, seed=0, device=torch.device("cpu"))


def samples(*lengths):
    rng = np.random.default_rng(0)
    return [
        EncodedSample(rng.integers(0, 97, n).astype(np.int32), np.r_[0, np.ones(n - 1)].astype(np.float32))
        for n in lengths
    ]


def pack(parts):
    return build_pack([SampleId(i, 0, i) for i in range(len(parts))], parts)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_pack_gives_each_sample_the_logits_that_transformers_gives_it_alone(name):
    model = build(CONFIGS[name])
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), attn_implementation="eager").eval()
    assert model.module.config._attn_implementation == attention.SEGMENTS != plain.config._attn_implementation
    plain.load_state_dict(model.module.state_dict())
    parts = samples(11, 3, 17)
    whole = pack(parts)
    packed = model.logits(model.module, whole, None, torch.arange(len(whole.tokens)))
    for part, start in zip(parts, whole.cu_seqlens, strict=False):
        alone = plain(torch.from_numpy(part.tokens).long()[None]).logits[0]
        torch.testing.assert_close(packed[start : start + len(part)], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_isolation_is_proved(name):
    model = build(CONFIGS[name])
    assert check_isolation(model, model.module, 97, context_length=128).packed < 1e-5


def test_a_model_that_lets_samples_see_each_other_is_refused(monkeypatch):
    model = build(CONFIGS["llama"])

    def leak(self, pack, *rest):
        enter(self, pack, *rest)
        self.ends = [0, self.ends[-1]]

    enter = PackContext.enter
    monkeypatch.setattr(PackContext, "enter", leak)
    with pytest.raises(ModelError, match="samples of a pack see each other"):
        check_isolation(model, model.module, 97, 128)


def test_a_model_that_sees_the_future_is_refused(monkeypatch):
    model = build(CONFIGS["llama"])
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, is_causal=False, **rest: sdpa(*args, is_causal=False, **rest),
    )
    with pytest.raises(ModelError, match="a token sees those after it"):
        check_isolation(model, model.module, 97, 128)


def test_a_model_with_attention_of_its_own_is_refused():
    model = build(CodeGenConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, rotary_dim=4))
    with pytest.raises(ModelError, match="only 0 of 2 layers use transformers' attention interface"):
        check_isolation(model, model.module, 97, 128)


def test_a_window_that_does_not_reach_the_attention_function_is_refused():
    model = build(CONFIGS["llama"])
    model.module.config.sliding_window = 4
    with pytest.raises(ModelError, match="window of 4 tokens does not reach"):
        check_isolation(model, model.module, 97, 128)
    assert check_isolation(model, model.module, 97, context_length=4).packed < 1e-5


def test_each_sample_of_a_pack_gets_the_gradient_it_has_alone():
    model = build(CONFIGS["qwen3"])
    parts = samples(11, 3, 17)

    def gradient(packs):
        model.module.zero_grad()
        for one in packs:
            scores, weights = model.token_scores(model.module, one, 0)
            (negative_log_likelihood(scores) * weights).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.module.parameters()])

    together, apart = gradient([pack(parts)]), gradient([pack([part]) for part in parts])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_varlen_is_chosen_only_where_its_kernel_runs():
    config = CONFIGS["llama"]
    assert attention.choose("auto", "cuda", "bfloat16", config) == attention.VARLEN
    assert attention.choose("auto", "cuda", "float32", config) == attention.SEGMENTS
    assert attention.choose("auto", "cpu", "bfloat16", config) == attention.SEGMENTS
    assert attention.choose("segments", "cuda", "bfloat16", config) == attention.SEGMENTS
    for device, dtype, reason in (
        ("cpu", "bfloat16", "needs a CUDA device"),
        ("cuda", "float32", "needs model.dtype=bfloat16"),
    ):
        with pytest.raises(ModelError, match=reason):
            attention.choose("varlen", device, dtype, config)


UNSUPPORTED = {
    "dropout is 0.1": (OPTConfig(dropout=0.1), 64),
    "mixtures of experts": (MixtralConfig(**SMALL), 64),
    "dynamic RoPE scales by the longest sample": (
        LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), 256
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_what_would_be_trained_wrongly_is_refused(reason):
    config, context_length = UNSUPPORTED[reason]
    with pytest.raises(ModelError, match=reason) as error:
        refuse_unsupported(Architecture.of(config), context_length, packing=True, where="model")
    assert error.value.where == "model/config.json" and error.value.fix


def test_the_models_that_are_tested_here_are_supported():
    for name, config in CONFIGS.items():
        refuse_unsupported(Architecture.of(config), 128, packing=True, where=name)
