"""The head on supervised positions, in blocks of the vocabulary: what full logits would give, without holding them."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.sections import LossSection
from dist_sft.core.errors import ModelError
from dist_sft.model import attention, scores
from dist_sft.model.context import PackContext
from dist_sft.model.head import attach_head
from dist_sft.model.packed import PackedModel
from dist_sft.model.scores import LogitTransform, token_scores
from dist_sft.proofs.head import check_head
from dist_sft.train.loss import needs_mean, token_loss
from tests.model.test_attention import CONFIGS, SMALL, build, pack, samples

HEADS = CONFIGS | {
    "granite-divides": GraniteConfig(**SMALL, logits_scaling=4.0),
    "cohere-multiplies": CohereConfig(**SMALL, logit_scale=0.25),
    "gemma2-capped-low": CONFIGS["gemma2-softcap"].__class__(
        **SMALL, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=0.5
    ),
}


@pytest.fixture(params=["kept", "computed again"])
def blocks(request, monkeypatch):
    """Several blocks of the vocabulary, whose logits are kept for the backward pass, or not."""
    monkeypatch.setattr(scores, "BLOCK", {"cpu": 1, "cuda": 1})  # 128 words, the smallest
    if request.param == "computed again":
        monkeypatch.setattr(scores, "KEPT", 0)


def exact(factors, bias, targets, shape):
    """Scores from all logits, float64."""
    logits = sum(hidden.double() @ weight.double().t() for hidden, weight in factors)
    logits = shape(logits if bias is None else logits + bias)
    return torch.stack([logits.logsumexp(1), logits.gather(1, targets[:, None])[:, 0], logits.mean(1)], dim=1)


@pytest.mark.parametrize(
    "shape", [LogitTransform(), LogitTransform(0.5), LogitTransform(1.0, 5.0), LogitTransform(0.5, 5.0)]
)
def test_scores_and_gradients_are_those_of_all_logits(shape, blocks):
    torch.manual_seed(0)
    sizes = [(37, 16), (700, 16), (37, 3), (700, 3), (700,)]
    hidden, weight, low, up, bias = (torch.randn(size, requires_grad=True) for size in sizes)
    targets, upstream = torch.randint(0, 700, (37,)), torch.randn(37, 3)
    factors, inputs = [(hidden, weight), (low, up)], [hidden, weight, low, up, bias]
    found, expected = token_scores(factors, bias, targets, shape, mean=True), exact(factors, bias, targets, shape)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-6)
    gradients = torch.autograd.grad((found * upstream).sum(), inputs)
    for one, other in zip(gradients, torch.autograd.grad((expected * upstream).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("positions", [3, 40, 300])
def test_the_weights_gradient_lends_its_memory_to_logits(positions, dtype, monkeypatch):
    """All logits fit in it, those of some blocks, or of none; and each is used before it is written over."""
    monkeypatch.setattr(scores, "BLOCK", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(scores, "KEPT", 0)
    again = []
    monkeypatch.setattr(
        scores, "_matmul", lambda *args, real=scores._matmul, **kw: again.append(1) or real(*args, **kw)
    )
    torch.manual_seed(0)
    hidden, weight = torch.randn(positions, 33).to(dtype), torch.randn(701, 33).to(dtype)
    targets, inputs = torch.randint(0, 701, (positions,)), [hidden.requires_grad_(), weight.requires_grad_()]
    found = token_scores([(hidden, weight)], None, targets, LogitTransform(cap=5.0))
    expected = exact([(hidden, weight)], None, targets, LogitTransform(cap=5.0))
    gradients = torch.autograd.grad((found[:, 0] - found[:, 1]).sum(), inputs)
    for one, other in zip(gradients, torch.autograd.grad((expected[:, 0] - expected[:, 1]).sum(), inputs), strict=True):
        torch.testing.assert_close(
            one, other, atol=(1e-5 if dtype == torch.float32 else 0.01) * float(other.abs().max()), rtol=0.01
        )
    blocks, numbers = 6, 701 * 33 * dtype.itemsize // 4
    kept = sum((701 - first) * positions <= numbers for first in range(0, 701, 128))
    assert len(again) == 3 * blocks + (blocks - kept)


def test_a_frozen_head_gets_no_gradient_and_hidden_states_do():
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(300, 8)
    token_scores([(hidden, weight)], None, torch.arange(5), LogitTransform())[:, 0].sum().backward()
    assert weight.grad is None and hidden.grad.abs().sum() > 0


@pytest.mark.parametrize("products", [torch.bfloat16, torch.float32])
def test_bfloat16_loses_what_transformers_loses_or_the_rounding_of_its_inputs_alone(products, blocks, monkeypatch):
    """Products in bfloat16 round every logit, as transformers' do; products in float32 round none."""
    monkeypatch.setattr(scores, "matmul_dtype", lambda device, dtype: products)
    torch.manual_seed(0)
    hidden, weight = torch.randn(200, 64).bfloat16(), torch.randn(900, 64).bfloat16()
    targets = torch.randint(0, 900, (200,))

    def losses_and_gradients(of):
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        losses = of(*inputs)
        return losses.detach(), *torch.autograd.grad(losses.sum(), inputs)

    def ours(hidden, weight):
        found = token_scores([(hidden, weight)], None, targets, LogitTransform(), mean=True)
        return found[:, 0] - found[:, 1]

    def of_transformers(hidden, weight):
        """What modeling code and ForCausalLMLoss do, in the dtype of the weights."""
        return torch.nn.functional.cross_entropy(
            torch.nn.functional.linear(hidden, weight).float(), targets, reduction="none"
        )

    def without_rounding(hidden, weight):
        found = exact([(hidden, weight)], None, targets, LogitTransform())
        return found[:, 0] - found[:, 1]

    found = losses_and_gradients(ours)
    expected = losses_and_gradients(of_transformers if products == torch.bfloat16 else without_rounding)
    torch.testing.assert_close(found[0].double(), expected[0].double(), atol=1e-4, rtol=1e-5)
    assert found[1].dtype == found[2].dtype == torch.bfloat16
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert (one.float() - other.float()).abs().max() <= 2**-7 * other.float().abs().max()


def test_the_logits_of_a_pack_are_never_held_at_once(monkeypatch):
    """With a budget of one block, no tensor of P x V is made, forward or backward."""
    monkeypatch.setattr(scores, "BLOCK", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(scores, "KEPT", 0)
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            largest.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    hidden, weight = torch.randn(200, 8, requires_grad=True), torch.randn(5000, 8, requires_grad=True)
    with Sizes():
        token_scores([(hidden, weight)], None, torch.arange(200), LogitTransform())[:, 0].sum().backward()
    assert max(largest) <= max(200 * 128, weight.numel())


LOSSES = {
    "nll": LossSection(),
    "label smoothing": LossSection(label_smoothing=0.1),
    "z-loss": LossSection(z_loss=1e-2),
    "dft": LossSection(kind="dft"),
    "both": LossSection(label_smoothing=0.2, z_loss=1e-3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_their_formulas(name):
    torch.manual_seed(0)
    settings, logits = LOSSES[name], torch.randn(9, 50, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (9,))
    found = token_loss(exact([(logits, torch.eye(50))], None, targets, LogitTransform()), settings)
    p = logits.softmax(1).gather(1, targets[:, None])[:, 0]
    expected = torch.nn.functional.cross_entropy(
        logits, targets, reduction="none", label_smoothing=settings.label_smoothing
    )
    expected = expected * (p.detach() if settings.kind == "dft" else 1)
    expected = expected + settings.z_loss * logits.exp().sum(1).log() ** 2
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert needs_mean(settings) == ("smoothing" in name or name == "both")


@pytest.mark.parametrize("name", HEADS)
def test_a_model_scores_as_transformers_computes_its_logits(name):
    """Tied and untied, soft-capped and scaled; the plain model has no code of ours."""
    model = build(HEADS[name])
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(HEADS[name]), attn_implementation="eager").eval()
    plain.load_state_dict(model.module.state_dict())
    (sample,) = samples(23)
    found, weights = model.token_scores(model.module, pack([sample]), None, mean=True)
    logits = plain(torch.from_numpy(sample.tokens).long()[None]).logits[0, :-1]
    expected = exact([(logits, torch.eye(97))], None, torch.from_numpy(sample.tokens[1:]).long(), LogitTransform())
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-4)
    assert weights.tolist() == [1.0] * 22
    gradients = []
    for result, module in ((found, model.module), (expected, plain)):
        (result[:, 0] - result[:, 1]).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_proved(name):
    model = build(HEADS[name])
    assert check_head(model, model.module, 97) < 1e-5


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused():
    model = build(CONFIGS["llama"])

    def warmer(_, __, output):
        output.logits = output.logits * 1.01

    model.module.register_forward_hook(warmer)
    with pytest.raises(ModelError, match="it changes them in a way that is not known here"):
        check_head(model, model.module, 97)


def adapted(**settings):
    attention.register()
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["qwen3"]), attn_implementation=attention.SEGMENTS)
    module = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, task_type="CAUSAL_LM", **settings))
    for parameter in module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    context = PackContext()
    context.attach(module)
    return module.eval(), context


@pytest.mark.parametrize("settings", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapted_head_scores_as_peft_computes_its_logits(settings):
    (sample,) = samples(23)
    whole = pack([sample])
    ids, targets = (torch.from_numpy(sample.tokens).long() for _ in range(2))
    module, context = adapted(**settings)
    context.enter(whole, torch.device("cpu"), 0, None)
    logits = module(input_ids=ids[None], position_ids=torch.arange(23)[None], use_cache=False).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, targets[1:], reduction="sum").backward()
    expected = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()

    attach_head(module, context)
    model = PackedModel(module, context, seed=0, device=torch.device("cpu"))
    found, _ = model.token_scores(module, whole, None)
    nll = torch.nn.functional.cross_entropy(logits, targets[1:], reduction="none")
    torch.testing.assert_close(found[:, 0] - found[:, 1], nll)
    (found[:, 0] - found[:, 1]).sum().backward()
    assert any("lm_head" in name for name in expected)
    for name, parameter in module.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    assert check_head(model, module, 97) < 1e-5


def test_scores_are_those_of_the_supervised_positions_only():
    model = build(CONFIGS["llama"])
    tokens = np.array([4, 8, 15, 16, 23], np.int32)
    weights = np.array([0, 0, 1, 0, 0.5], np.float32)
    found, kept = model.token_scores(model.module, pack([EncodedSample(tokens, weights)]), None)
    logits = model.logits(model.module, pack([EncodedSample(tokens, weights)]), None, torch.tensor([1, 3]))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([15, 23]), reduction="none")
    torch.testing.assert_close(found[:, 0] - found[:, 1], expected)
    assert kept.tolist() == [1, 0.5]


def test_a_pack_with_nothing_supervised_has_zero_weight_but_runs_the_whole_model():
    model = build(CONFIGS["llama"])
    found, weights = model.token_scores(model.module, pack([]), 0)
    ((found[:, 0] - found[:, 1]) * weights).sum().backward()
    assert weights.tolist() == [0]
    assert all(p.grad is not None and not p.grad.any() for p in model.module.parameters())
