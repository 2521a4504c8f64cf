"""Every back end that runs here computes the same attention, and keeps samples apart."""

import numpy as np
import pytest
import torch

from dist_sft.core.errors import ModelError
from dist_sft.model import attention
from dist_sft.model.attention import flash as flash_attention
from dist_sft.model.attention import segments as one_by_one
from dist_sft.model.attention.call import Call
from dist_sft.model.attention.interface import KERNELS
from tests.model.test_attention import CONFIGS, build, pack, samples
from tests.model.test_noise import enter

ON_CPU = {"segments": attention.SEGMENTS, "flex": attention.FLEX}
FAMILIES = ["llama", "qwen3", "mistral-sliding", "gemma3-sliding"]


def tensors(context, heads=4, groups=2, kind=torch.float64):
    torch.manual_seed(0)
    tokens = context.ends[-1]
    return [torch.randn(tokens, n, 16, dtype=kind, requires_grad=True) for n in (heads, groups, groups)]


def dense(query, key, value, context, call):
    """All scores of the pack at once, then what a token may not see is taken out."""
    place = torch.arange(context.ends[-1])
    sample = torch.bucketize(place, torch.tensor(context.ends[1:]), right=True)
    back = place[:, None] - place
    near = (sample[:, None] == sample) & (back >= 0) & (back < (call.window or len(place)))
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * (call.scaling or query.shape[-1] ** -0.5)
    if call.softcap:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~near, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 4, 128, 129, 150, 400])
@pytest.mark.parametrize("name", ON_CPU)
def test_a_back_end_computes_what_all_scores_of_the_pack_give(name, window, softcap):
    """Forward and backward, float64; a sample of several blocks of queries, one of a single token."""
    context = enter((0, 300), (1, 1), (2, 129), step=None)
    inputs, call = tensors(context), Call(0.3, window, softcap, 0.0, layer=0)
    found, expected = KERNELS[ON_CPU[name]](*inputs, context, call), dense(*inputs, context, call)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad((found * upstream).sum(), inputs)
    for one, other in zip(gradients, torch.autograd.grad((expected * upstream).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 4, 150])
@torch.no_grad()
def test_the_block_mask_of_flex_attention_itself_is_right(window, softcap):
    """Its own kernel, which has no backward pass on CPU."""
    context = enter((0, 300), (1, 1), (2, 129), step=None)
    inputs, call = [tensor.detach() for tensor in tensors(context)], Call(0.3, window, softcap, 0.0, layer=0)
    found = KERNELS[attention.FLEX](*inputs, context, call)
    torch.testing.assert_close(found, dense(*inputs, context, call), atol=1e-10, rtol=1e-8)
    (mask,) = context.kept.values()
    assert KERNELS[attention.FLEX](*inputs, context, call).equal(found) and [*context.kept.values()] == [mask]
    computed = int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert computed <= 8, mask  # of 10 that are not ahead: on a GPU those between samples are skipped, too


def test_bfloat16_on_cpu_loses_no_more_than_the_rounding_of_its_inputs_and_outputs():
    context = enter((0, 70), (1, 50), step=None)
    inputs, call = tensors(context, kind=torch.bfloat16), Call(None, None, None, 0.0, layer=0)
    found = KERNELS[attention.SEGMENTS](*inputs, context, call)
    assert found.dtype == torch.bfloat16
    expected = dense(*(tensor.double() for tensor in inputs), context, call)
    assert (found - expected).abs().max() <= 2**-7 * expected.abs().max()


def logits_and_gradient(model, parts):
    """[T, V], and the gradient of the sum of all next-token losses by all parameters."""
    whole = pack(parts)
    model.module.zero_grad()
    logits = model.logits(model.module, whole, None, torch.arange(len(whole.tokens)))
    at = torch.from_numpy(np.flatnonzero(whole.weights))
    targets = torch.from_numpy(whole.tokens).long()[at]
    torch.nn.functional.cross_entropy(logits[at - 1], targets, reduction="sum").backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.module.parameters()])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("back_end", ON_CPU)
def test_packed_is_alone_to_one_millionth(back_end, name):
    """Logits and gradients of float64 models, relative to the largest."""
    model = build(CONFIGS[name], ON_CPU[back_end])
    model.module.double()
    parts = samples(11, 3, 17)
    packed, together = logits_and_gradient(model, parts)
    alone = [logits_and_gradient(model, [part]) for part in parts]
    expected = torch.cat([logits for logits, _ in alone])
    assert (packed - expected).abs().max() <= 1e-6 * expected.abs().max()
    apart = sum(gradient for _, gradient in alone)
    assert (together - apart).abs().max() <= 1e-6 * apart.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("back_end", ON_CPU)
@torch.no_grad()
def test_a_sample_with_other_tokens_moves_no_logit_of_the_others_at_all(back_end, name):
    model = build(CONFIGS[name], ON_CPU[back_end])
    parts = samples(11, 6, 17)
    whole, poisoned = pack(parts), pack([parts[0], samples(20, 6)[1], parts[2]])
    assert (whole.tokens != poisoned.tokens).sum() >= 5
    at = torch.arange(len(whole.tokens))
    before, after = (model.logits(model.module, one, None, at) for one in (whole, poisoned))
    moved = (before != after).any(1)
    assert not moved[:11].any() and moved[11:17].all() and not moved[17:].any()


def test_auto_takes_the_fastest_that_computes_what_is_asked_for(monkeypatch):
    llama, gemma2 = CONFIGS["llama"], CONFIGS["gemma2-softcap"]

    def chosen(device, dtype, config, dropout=0.0):
        return attention.name_of(attention.choose("auto", device, dtype, config, dropout))

    assert chosen("cuda", "bfloat16", llama) == "varlen"
    assert chosen("cuda", "bfloat16", gemma2) == "segments"
    monkeypatch.setattr(flash_attention, "_kernel", lambda: print)
    assert chosen("cuda", "bfloat16", llama) == chosen("cuda", "bfloat16", gemma2) == "flash"
    assert chosen("cuda", "float32", llama) == chosen("cpu", "bfloat16", llama) == "segments"
    assert chosen("cuda", "bfloat16", llama, dropout=0.1) == "segments"


REFUSED = [
    ("varlen", "cpu", "bfloat16", 0.0, "needs a CUDA device"),
    ("flash", "cpu", "bfloat16", 0.0, "needs a CUDA device"),
    ("flash", "cuda", "bfloat16", 0.0, "needs the package flash_attn .* not installed"),
    ("flash", "cuda", "float32", 0.0, "needs model.dtype=bfloat16"),
    ("varlen", "cuda", "bfloat16", 0.1, "without dropout: its kernel draws from a generator"),
    ("flex", "cpu", "float32", 0.1, "without dropout: its kernel draws from a generator"),
]


@pytest.mark.parametrize(("name", "device", "dtype", "dropout", "reason"), REFUSED)
def test_a_back_end_that_cannot_run_says_what_it_needs(name, device, dtype, dropout, reason):
    with pytest.raises(ModelError, match=reason):
        attention.choose(name, device, dtype, CONFIGS["llama"], dropout)


def test_a_soft_cap_is_never_left_out():
    with pytest.raises(ModelError, match="needs attention without a soft cap"):
        attention.choose("varlen", "cuda", "bfloat16", CONFIGS["gemma2-softcap"])


def test_the_block_of_queries_changes_nothing(monkeypatch):
    context = enter((0, 100), (1, 30))
    inputs, call = tensors(context), Call(None, 20, None, 0.3, layer=1)
    expected = KERNELS[attention.SEGMENTS](*inputs, context, call)
    monkeypatch.setattr(one_by_one, "BLOCK", 7)
    torch.testing.assert_close(KERNELS[attention.SEGMENTS](*inputs, context, call), expected)
