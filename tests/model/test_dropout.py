"""Dropout belongs to a sample, and residual dropout reaches exactly what blocks add."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    Glm4Config,
    GraniteConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
)

from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model.branches import branch_ends, decoder_blocks
from dist_sft.model.dropout import SampleDropout, add_residual_dropout, replace_dropout
from dist_sft.proofs.dropout import check_residual_dropout
from tests.model.test_attention import CONFIGS, SMALL, build, pack, samples
from tests.model.test_noise import enter

KNOWN = {
    **{name: config for name, config in CONFIGS.items() if name != "gpt2"},
    "phi3": Phi3Config(**SMALL, pad_token_id=0),
    "olmo2": Olmo2Config(**SMALL),
    "granite": GraniteConfig(**SMALL, residual_multiplier=0.5),
    "glm4": Glm4Config(**SMALL, head_dim=8, pad_token_id=0),
    "cohere": CohereConfig(**SMALL),
    "gpt2": CONFIGS["gpt2"],
}


def test_dropout_keeps_the_expectation_and_follows_the_sample():
    values = torch.ones(1, 70, 64)
    packed = SampleDropout(0.25, "layer", enter((3, 50), (7, 20)))(values)
    alone = SampleDropout(0.25, "layer", enter((7, 20)))(values[:, :20])
    assert torch.equal(packed[:, 50:], alone)
    assert packed.mean() == pytest.approx(1, abs=0.03)
    assert (packed == 0).float().mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_any_rate_drops_its_share_and_stays_finite(p):
    values = torch.ones(1, 2048, 256)
    dropped = SampleDropout(p, "layer", enter((0, 2048)))(values)
    assert bool(torch.isfinite(dropped).all())
    assert float((dropped == 0).float().mean()) == pytest.approx(
        p, abs=4 * (p * (1 - p) / values.numel()) ** 0.5 + 3e-5
    )


def test_evaluation_has_no_dropout():
    values = torch.ones(1, 10, 4)
    assert torch.equal(SampleDropout(0.5, "layer", enter((0, 10), step=None))(values), values)


def test_layers_and_steps_drop_different_elements():
    values = torch.ones(1, 64, 64)
    masks = [
        SampleDropout(0.5, name, enter((0, 64), step=step))(values) == 0
        for name, step in (("a", 3), ("b", 3), ("a", 4))
    ]
    for other in masks[1:]:
        assert (masks[0] == other).float().mean() == pytest.approx(0.5, abs=0.04)


def dropping(config, p=0.4):
    """A small random model with residual dropout, in training mode."""
    model = build(config)
    add_residual_dropout(model.module, model.context, p)
    model.module.train()
    return model


@pytest.mark.parametrize("name", KNOWN)
def test_residual_dropout_reaches_all_that_blocks_add(name):
    model = dropping(KNOWN[name])
    check_residual_dropout(model, model.module)
    assert model.module.training and model.context.branches is None


@pytest.mark.parametrize("name", ["llama", "gemma3-sliding", "granite"])
def test_the_proof_holds_for_many_blocks_in_bfloat16(name):
    config = copy.deepcopy(KNOWN[name])
    config.num_hidden_layers = 48
    config.layer_types = ["full_attention"] * 48
    config.residual_multiplier = 0.22
    model = dropping(config)
    model.module.to(torch.bfloat16)
    check_residual_dropout(model, model.module)


@pytest.mark.parametrize("name", ["llama", "qwen2-sliding", "qwen3", "mistral-sliding", "gemma"])
def test_sublayers_themselves_are_dropped_where_no_norm_follows_them(name):
    (block, *_) = decoder_blocks(build(KNOWN[name]).module)
    assert [name for name, _ in branch_ends(block)] == ["self_attn", "mlp"]


@pytest.mark.parametrize("name", ["gemma2-softcap", "gemma3-sliding", "olmo2"])
def test_the_norms_behind_the_sublayers_are_dropped_where_there_are_any(name):
    (block, *_) = decoder_blocks(build(KNOWN[name]).module)
    assert [name for name, _ in branch_ends(block)] == ["post_attention_layernorm", "post_feedforward_layernorm"]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("gemma2-softcap", ("post_attention_layernorm", "mlp")),  # before a norm, which would undo the scale
        ("llama", ("self_attn", "self_attn")),  # not all that is added
        ("llama", ("self_attn", "input_layernorm")),
    ],
)
def test_dropout_in_another_place_is_refused(monkeypatch, name, ends):
    monkeypatch.setattr("dist_sft.model.branches.ENDS", (ends,))
    model = dropping(CONFIGS[name])
    with pytest.raises(ModelError, match="2 of 2 blocks add to the residual stream what dropout does not reach"):
        check_residual_dropout(model, model.module)


def test_a_third_branch_is_refused():
    model = dropping(CONFIGS["llama"])
    first, _ = decoder_blocks(model.module)
    first.register_forward_hook(lambda _module, _args, output: output * 1.01)
    with pytest.raises(ModelError, match="1 of 2 blocks add to the residual stream what dropout does not reach"):
        check_residual_dropout(model, model.module)


def test_a_block_that_is_not_known_is_refused():
    config = OPTConfig(vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(ModelError, match="adds to the residual stream cannot be told"):
        dropping(config)


def branches(model, whole, step):
    """What each block adds: (attention, MLP) by block."""
    out = []

    def record(_module, _args, output):
        out.append(output[0] if isinstance(output, tuple) else output)

    handles = [m.register_forward_hook(record) for b in decoder_blocks(model.module) for _, m in branch_ends(b)]
    model.logits(model.module, whole, step, torch.arange(len(whole.tokens)))
    for handle in handles:
        handle.remove()
    return out


@torch.no_grad()
def test_the_rate_grows_linearly_from_none_at_the_bottom_to_p_at_the_last_block():
    config = type(CONFIGS["llama"])(**SMALL | {"num_hidden_layers": 4, "hidden_size": 128})
    added = branches(dropping(config, p=0.3), pack(samples(300, 200)), 3)
    shares = [float((part == 0).float().mean()) for part in added]
    assert shares == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3], abs=0.006)


@torch.no_grad()
def test_a_sample_is_dropped_alike_alone_and_in_any_pack_and_not_in_evaluation():
    model, parts = dropping(CONFIGS["qwen3"]), samples(11, 3, 17)
    packed = branches(model, pack(parts), 3)
    for i, start in enumerate([0, 11, 14]):
        alone = branches(model, build_pack([SampleId(i, 0, i)], [parts[i]]), 3)
        for whole, one in zip(packed, alone, strict=True):
            assert torch.equal(whole[0, start : start + len(parts[i])] == 0, one[0] == 0)
    clean = build(CONFIGS["qwen3"])
    evaluated = model.logits(model.module, pack(parts), None, torch.arange(31))
    assert torch.equal(evaluated, clean.logits(clean.module, pack(parts), None, torch.arange(31)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma3-sliding"])
def test_a_recomputed_forward_pass_drops_the_same_elements(name, reentrant):
    whole, gradients = pack(samples(11, 3, 17)), []
    for recompute in (False, True):
        model = dropping(CONFIGS[name])
        if recompute:
            model.module.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.logits(model.module, whole, 3, torch.arange(31)).square().sum().backward()
        gradients.append({key: p.grad for key, p in model.module.named_parameters()})
    for key, gradient in gradients[0].items():
        assert torch.equal(gradients[1][key], gradient), key


@torch.no_grad()
def test_adapters_with_dropout_of_their_own_leave_residual_dropout_as_it_is():
    whole, bare, wrapped = pack(samples(11, 3, 17)), dropping(CONFIGS["qwen3"]), build(CONFIGS["qwen3"])
    adapters = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.5)
    wrapped.module = get_peft_model(wrapped.module, adapters)
    assert replace_dropout(wrapped.module, wrapped.context) == 14
    add_residual_dropout(wrapped.module, wrapped.context, 0.4)
    wrapped.context.attach(wrapped.module)
    wrapped.module.train()
    for expected, found in zip(branches(bare, whole, 3), branches(wrapped, whole, 3), strict=True):
        torch.testing.assert_close(found, expected)  # a fresh adapter is the identity


def test_a_model_whose_blocks_cannot_be_found_is_refused():
    model = build(CONFIGS["llama"])
    model.module.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="its 7 blocks cannot be found: 2 were"):
        add_residual_dropout(model.module, model.context, 0.1)


def test_samples_are_dropped_at_the_rate_of_the_setting_in_bfloat16():
    values = torch.ones(1, 512, 64, dtype=torch.bfloat16)
    dropped = SampleDropout(0.25, "layer", enter((0, 512)))(values)
    assert dropped.dtype == torch.bfloat16
    assert np.unique(dropped.float().numpy()).tolist() == [0, pytest.approx(4 / 3, rel=0.01)]
