"""What only a CUDA device can show. Not yet run: no machine of ours has had one."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_sft.config.noise import Neftune
from dist_sft.config.sections import LoraTuning, Optimizer
from dist_sft.core.errors import ModelError
from dist_sft.model import attention, neftune
from dist_sft.model.adapters import starts_of, with_adapters
from dist_sft.model.attention.call import Call
from dist_sft.model.attention.dropout import drop
from dist_sft.model.context import PackContext
from dist_sft.model.head import attach_head
from dist_sft.model.packed import PackedModel
from dist_sft.model.scores import LogitTransform, token_scores
from dist_sft.proofs.isolation import prove_isolation
from dist_sft.train.optimizer import build_optimizer
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


FAST = ["flash", "varlen", "flex"]


def chosen(back_end, name):
    """The back end in transformers' registry; skips what does not run here, or does not compute this model."""
    try:
        return attention.choose(back_end, "cuda", "bfloat16", CONFIGS[name])
    except ModelError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("back_end", FAST)
def test_a_kernel_computes_what_attention_per_segment_computes(back_end, name):
    """Logits and gradients; packs of several lengths, for compiled kernels."""
    for lengths in ((11, 3, 17, 64), (300, 129, 1), (7,)):
        whole = pack(samples(*lengths))
        at = torch.arange(len(whole.tokens), device="cuda")
        found = []
        for implementation in (attention.SEGMENTS, chosen(back_end, name)):
            model = build(name, implementation)
            logits = model.logits(model.module, whole, None, at)
            logits.float().logsumexp(1).sum().backward()
            gradient = torch.cat([p.grad.float().flatten() for p in model.module.parameters()])
            found.append((logits.detach(), gradient))
        (one, of_one), (other, of_other) = found
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)
        assert (of_one - of_other).norm() < 0.05 * of_one.norm()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("back_end", FAST)
def test_isolation_is_proved_for_a_kernel(back_end, name):
    found = prove_isolation(build(name, chosen(back_end, name)), 97, context_length=128)
    assert found.packed < 0.05


def test_attention_dropout_is_the_same_on_cpu_and_gpu():
    weights, call = torch.rand(1, 4, 60, 70), Call(None, None, None, 0.25, layer=3)
    expected = drop(weights, 12345, call, 10, 0)
    torch.testing.assert_close(drop(weights.cuda(), 12345, call, 10, 0).cpu(), expected)


def test_noise_is_the_same_on_cpu_and_gpu():
    context = enter((3, 50), (7, 20))
    settings = Neftune()
    expected = neftune.noise(context, settings, 5, 16)
    for field in ("positions", "lengths", "keys", "padding", "answers"):
        setattr(context, field, getattr(context, field).cuda())
    assert torch.equal(neftune.noise(context, settings, 5, 16).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "tuning", [{"init": "pissa"}, {"init": "pissa", "dora": True}, {"modules_to_save": ["lm_head"]}]
)
@torch.no_grad()
def test_adapters_change_nothing_before_the_first_update(tuning, dtype):
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS["llama"])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to("cuda").eval()
    ids = torch.arange(20, device="cuda")[None]
    expected = model(ids).logits
    adapted = with_adapters(model, LoraTuning(kind="lora", rank=4, **tuning), seed=0)
    assert all(start.device.type == "cuda" for start in starts_of(adapted).values())
    torch.testing.assert_close(adapted(ids).logits, expected, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0)


def test_eight_bit_moments_lower_a_loss():
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = torch.nn.Linear(512, 512).cuda()
    optimizer = build_optimizer(layer, Optimizer(name="adamw8bit"), 1e-2, offloaded=False)
    values = torch.randn(64, 512, device="cuda")
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(values) - values).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scores_on_a_gpu_are_those_of_all_logits(dtype):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(size, device="cuda", dtype=dtype) for size in ((300, 64), (5000, 64)))
    targets = torch.randint(0, 5000, (300,), device="cuda")
    found = token_scores([(hidden, weight)], None, targets, LogitTransform(), mean=True)
    logits = hidden.double() @ weight.double().t()
    expected = torch.stack([logits.logsumexp(1), logits.gather(1, targets[:, None])[:, 0], logits.mean(1)], 1)
    torch.testing.assert_close(found.double(), expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-3, rtol=1e-4)
