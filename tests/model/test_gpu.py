"""What only a CUDA device can show. Not yet run: no machine of ours has had one."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_sft.model import attention, noise
from dist_sft.model.context import PackContext
from dist_sft.model.head import attach_head
from dist_sft.model.isolation import check_isolation
from dist_sft.model.packed import PackedModel
from tests.model.test_attention import CONFIGS, pack, samples
from tests.model.test_noise import enter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def build(name, implementation):
    attention.register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        copy.deepcopy(CONFIGS[name]), attn_implementation=implementation, dtype=torch.bfloat16
    ).to("cuda")
    context = PackContext()
    context.attach(model)
    attach_head(model, context)
    return PackedModel(model.eval(), context, seed=0, device=torch.device("cuda"))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "gemma2-softcap"])
@torch.no_grad()
def test_the_variable_length_kernel_computes_what_attention_per_segment_computes(name):
    whole = pack(samples(11, 3, 17, 64))
    at = torch.arange(len(whole.tokens), device="cuda")
    logits = []
    for implementation in (attention.SEGMENTS, attention.VARLEN):
        model = build(name, implementation)
        logits.append(model.logits(model.module, whole, None, at))
    torch.testing.assert_close(*logits, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", CONFIGS)
def test_isolation_is_proved_for_the_variable_length_kernel(name):
    model = build(name, attention.VARLEN)
    assert check_isolation(model, model.module, 97, context_length=128).packed < 0.05


def test_noise_is_the_same_on_cpu_and_gpu():
    context = enter((3, 50), (7, 20))
    expected = noise.neftune(context, 5, "uniform", 16)
    for field in ("positions", "lengths", "keys"):
        setattr(context, field, getattr(context, field).cuda())
    assert torch.equal(noise.neftune(context, 5, "uniform", 16).cpu(), expected)
