"""What lets samples see each other is refused before training, with what to change."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    MambaConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from dist_sft.core.errors import ModelError
from dist_sft.model import attention
from dist_sft.model.attention.interface import KERNELS
from dist_sft.model.context import PackContext
from dist_sft.model.miniature import miniature
from dist_sft.proofs.isolation import check_isolation, prove_isolation
from tests.model.test_attention import CONFIGS, SMALL, build


class Calls(nn.Module):
    """A model that somebody calls with other arguments."""

    def __init__(self, module, **more):
        super().__init__()
        self.module, self.more = module, more

    def forward(self, **given):
        return self.module(**(given | self.more))


def test_a_model_that_keeps_a_cache_is_refused():
    model = build(CONFIGS["llama"])
    with pytest.raises(ModelError, match="keeps a cache") as error:
        check_isolation(model, Calls(model.module, use_cache=True), 97, 128)
    assert "use_cache=False" in error.value.fix


def test_a_model_that_keeps_a_cache_unless_it_is_told_not_to_is_refused():
    """As transformers' models do, where a caller leaves use_cache out."""
    model = build(CONFIGS["llama"])
    model.module.config.use_cache = True

    def call(use_cache, **given):
        return model.module(**given)

    with pytest.raises(ModelError, match="keeps a cache"):
        check_isolation(model, call, 97, 128)


@pytest.mark.parametrize("back_end", ["segments", "flex"])
@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3-sliding"])
def test_a_model_whose_samples_leak_is_refused(name, back_end, monkeypatch):
    """Through its window, too, where it has one."""
    model = build(CONFIGS[name], attention.choose(back_end, "cpu", "float32", CONFIGS[name], 0.0))
    enter = PackContext.enter

    def leak(self, *rest):
        enter(self, *rest)
        self.ends = [0, self.ends[-1]]
        self.cu_seqlens = self.cu_seqlens[[0, -1]]

    monkeypatch.setattr(PackContext, "enter", leak)
    with pytest.raises(ModelError, match="samples of a pack see each other") as error:
        check_isolation(model, model.module, 97, 128)
    assert "mix tokens by attention alone" in error.value.fix


@pytest.mark.parametrize("shape", [2, 4])
def test_a_model_that_is_given_a_mask_of_ones_is_refused(shape):
    model = build(CONFIGS["llama"])
    for tokens in (11, 13):
        ones = torch.ones((1, tokens) if shape == 2 else (1, 1, tokens, tokens))
        with pytest.raises(ModelError, match="attention mask") as error:
            check_isolation(model, Calls(model.module, attention_mask=ones), 97, 128)
        assert "without attention_mask" in error.value.fix


def test_a_mask_that_a_model_builds_itself_is_refused():
    model = build(CONFIGS["llama"])
    layer = model.module.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, attention_mask=None, **rest: forward(
        *args, attention_mask=torch.zeros(1, 1, 11, 11), **rest
    )
    with pytest.raises(ModelError, match="somebody built an attention mask"):
        check_isolation(model, model.module, 97, 128)


STATES = {
    "mamba": (MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8), "only 0 of 2 layers"),
    "recurrent-gemma": (
        RecurrentGemmaConfig(
            vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
            lru_width=32, attention_window_size=16,
        ),
        "only 1 of 3 layers",
    ),
    "qwen3-next": (
        Qwen3NextConfig(
            **SMALL, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, num_experts=0, layer_types=["linear_attention", "full_attention"],
        ),
        "only 1 of 2 layers",
    ),
    "falcon-h1": (
        FalconH1Config(
            **SMALL, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8,
            mamba_chunk_size=8,
        ),
        "samples of a pack see each other",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_model_whose_layers_carry_a_state_is_refused(name):
    config, reason = STATES[name]
    model = build(config)
    with pytest.raises(ModelError, match=reason) as error:
        check_isolation(model, model.module, 97, 128)
    assert "by attention alone" in error.value.fix


def test_a_window_that_reaches_only_some_of_its_layers_is_refused():
    model = build(CONFIGS["gemma3-sliding"])
    model.module.model.layers[1].self_attn.sliding_window = None
    with pytest.raises(ModelError, match="window of 4 tokens does not reach"):
        check_isolation(model, model.module, 97, 128)


class Leak(torch.autograd.Function):
    """The right output, with a gradient that comes from the whole pack."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 1e-3 * gradient.mean(0, keepdim=True)


def test_a_kernel_whose_backward_pass_mixes_samples_is_refused(monkeypatch):
    right = KERNELS[attention.SEGMENTS]
    monkeypatch.setitem(KERNELS, attention.SEGMENTS, lambda q, k, v, *rest: Leak.apply(right(q, k, v, *rest)))
    model = build(CONFIGS["llama"])
    check_isolation(model, model.module, 97, 128)
    with pytest.raises(ModelError, match="samples of a pack learn from each other"):
        prove_isolation(model, 97, 128)


class RoundsFirst(nn.Module):
    """An engine whose weights are rounded otherwise in its first pass than ever after, as those of ZeRO++ are."""

    def __init__(self, module, quantised):
        super().__init__()
        self.module, self.passes, self.zero_quantized_weights = module, 0, lambda: quantised

    def forward(self, **given):
        self.passes += 1
        if self.passes > 1:
            return self.module(**given)
        rounded = {name: value.bfloat16().float() for name, value in self.module.state_dict().items()}
        return torch.func.functional_call(self.module, rounded, kwargs=given)


def test_the_first_pass_of_an_engine_that_quantises_weights_proves_nothing():
    model = build(CONFIGS["llama"])
    check_isolation(model, RoundsFirst(model.module, quantised=True), 97, 128)
    with pytest.raises(ModelError, match="a token sees those after it"):
        check_isolation(model, RoundsFirst(model.module, quantised=False), 97, 128)


@pytest.mark.parametrize("back_end", ["segments", "flex"])
@pytest.mark.parametrize("name", CONFIGS)
def test_isolation_is_proved_on_a_small_model_of_the_same_architecture(name, back_end):
    model = build(miniature(CONFIGS[name]), attention.choose(back_end, "cpu", "float32", CONFIGS[name], 0.0))
    found = prove_isolation(model, 97, 128)
    assert found.packed < 1e-5 and found.poisoned == found.gradients == 0 and found.future < 1e-6
    assert not any(p.grad is not None for p in model.module.parameters())


def test_the_proof_leaves_a_model_as_it_was():
    model = build(CONFIGS["llama"])
    model.module.train()
    hooks = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.module.modules())
    prove_isolation(model, 97, 128)
    assert model.module.training
    after = sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.module.modules())
    assert hooks == after


@pytest.mark.parametrize(("name", "reason"), [("eager", "attention mask"), ("sdpa", "attention mask|only 0 of 2")])
def test_a_model_that_runs_transformers_own_attention_is_refused(name, reason):
    model = build(CONFIGS["llama"])
    model.module.config._attn_implementation = name
    with pytest.raises(ModelError, match=reason):
        check_isolation(model, model.module, 97, 128)


def test_a_registered_name_does_not_make_transformers_load_kernels_of_its_own():
    for name in (attention.SEGMENTS, attention.VARLEN, attention.FLASH, attention.FLEX):
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"], attn_implementation=name)
        assert model.config._attn_implementation == name and "flash" not in name
