"""Noise belongs to a sample: no rank, pack or order of calls can change it."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.integrations.neftune import activate_neftune, neftune_post_forward_hook

from dist_sft.chat.conversation import EncodedSample
from dist_sft.config.noise import Neftune, NoiseSchedule
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import build_pack
from dist_sft.model import neftune
from dist_sft.model.context import Asked, PackContext
from dist_sft.model.randomness import draw, mix64, signed_unit
from tests.model.test_attention import CONFIGS, SMALL, build, pack, samples

CPU = torch.device("cpu")
DISTRIBUTIONS = ["uniform", "gaussian", "symmetric"]
LENGTHS = [16 * 2**i for i in range(9)]
"""16 to 4096."""


def enter(*samples, step=3, seed=0, multiple=1, answers=0.5):
    """A context with samples given as (position, length); the last part of each is its answer."""
    context = PackContext(steps=10)
    encoded = []
    for _, length in samples:
        weights = (np.arange(length) >= max(1, round(length * (1 - answers)))).astype(np.float32)
        encoded.append(EncodedSample(np.zeros(length, np.int32), weights))
    context.enter(build_pack([SampleId(p, 0, 0) for p, _ in samples], encoded, multiple), CPU, seed, step)
    return context


def noise(context, width=16, alpha=5, block=0, **settings):
    return neftune.noise(context, Neftune(**settings), alpha, width, block)


def test_the_device_mixes_as_numpy_does():
    values = np.arange(1000, dtype=np.uint64) * np.uint64(0x123456789ABCDEF)
    mixed = mix64(torch.from_numpy(values.view(np.int64)))
    assert np.array_equal(mixed.numpy().view(np.uint64), seeds.mix64(values))


@pytest.mark.parametrize("width", [16, 17])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("more", [{}, {"where": "answer"}, {"where": "prompt"}, {"block": 2}], ids=str)
def test_a_sample_has_the_same_noise_alone_and_in_any_pack(distribution, more, width):
    alone = noise(enter((7, 20)), width, distribution=distribution, **more)
    packed = noise(enter((3, 50), (7, 20), (9, 4)), width, distribution=distribution, **more)
    padded = noise(enter((3, 50), (7, 20), multiple=64), width, distribution=distribution, **more)
    assert alone.any()
    assert torch.equal(alone, packed[50:70]) and torch.equal(alone, padded[50:70])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_each_sample_of_a_pack_has_the_norm_of_the_paper_and_in_transformers_only_the_pack_has(distribution):
    ours = noise(enter(*enumerate(LENGTHS)), 576, distribution=distribution).split(LENGTHS)
    assert [float(part.norm()) for part in ours] == pytest.approx([5 / 3**0.5] * len(LENGTHS), rel=0.02)
    theirs = transformers_noise(sum(LENGTHS), 576).split(LENGTHS)
    expected = [5 / 3**0.5 * (length / sum(LENGTHS)) ** 0.5 for length in LENGTHS]
    assert [float(part.norm()) for part in theirs] == pytest.approx(expected, rel=0.02)
    assert theirs[0].norm() < ours[0].norm() / 20


def transformers_noise(tokens, width, alpha=5):
    torch.manual_seed(0)
    embedding = torch.nn.Embedding.from_pretrained(torch.zeros(1, width))
    embedding.neftune_noise_alpha = alpha
    embedding.register_forward_hook(neftune_post_forward_hook)
    return embedding(torch.zeros(1, tokens, dtype=torch.int64))[0]


def test_the_hook_of_transformers_is_five_times_too_weak_for_a_short_sample_in_a_long_pack():
    """transformers#34659; scale: row reproduces it."""
    context = enter((0, 162), (1, 3934))
    theirs = transformers_noise(4096, 256)[:162].norm()
    assert noise(context, 256)[:162].norm() / theirs == pytest.approx(5.03, rel=0.02)
    assert noise(context, 256, scale="row")[:162].norm() / theirs == pytest.approx(1, rel=0.02)


def test_with_scale_row_only_the_strength_depends_on_the_pack():
    alone = noise(enter((7, 20)), scale="row")
    packed = noise(enter((3, 40), (7, 20), multiple=80), scale="row")
    torch.testing.assert_close(packed[40:60], alone * (20 / 80) ** 0.5)
    assert torch.equal(alone, noise(enter((7, 20))))


@pytest.mark.parametrize(("distribution", "kurtosis"), [("uniform", 1.8), ("gaussian", 3), ("symmetric", 1)])
def test_the_distributions_share_mean_and_variance_and_differ_in_the_fourth_moment(distribution, kurtosis):
    length, width = 2048, 512
    draws = noise(enter((0, length)), width, distribution=distribution).double()
    variance = 25 / (3 * length * width)
    deviations = (length * width) ** -0.5  # standard errors
    assert abs(float(draws.mean())) < 4 * variance**0.5 * deviations
    assert float(draws.var()) == pytest.approx(variance, rel=0.005)
    assert float((draws**4).mean() / draws.var() ** 2) == pytest.approx(kurtosis, rel=0.01)


def test_uniform_noise_fills_its_bounds_and_symmetric_noise_has_two_values():
    scale = 5 / (100 * 64) ** 0.5
    uniform = noise(enter((0, 100)), 64).abs()
    assert 0.99 * scale < uniform.max() <= scale
    symmetric = noise(enter((0, 100)), 64, distribution="symmetric")
    torch.testing.assert_close(symmetric.unique(), torch.tensor([-scale, scale]) / 3**0.5)


def test_the_integers_of_a_draw_are_equally_likely():
    context = enter((0, 4096))
    for dtype, bits in ((torch.int8, 8), (torch.int16, 16), (torch.int32, 32)):
        values = draw(context, "a", 256, dtype, lambda part: part).long() + 2 ** (bits - 1)
        counts = torch.bincount(values.flatten() >> (bits - 8), minlength=256).double()
        squares = ((counts - counts.mean()) ** 2 / counts.mean()).sum()  # chi square, 255 degrees of freedom
        assert 150 < squares < 380


def test_noise_differs_between_steps_samples_seeds_blocks_features_and_positions():
    draws = [
        noise(enter((0, 64))),
        noise(enter((1, 64))),
        noise(enter((0, 64), step=4)),
        noise(enter((0, 64), seed=1)),
        noise(enter((0, 64)), block=1),
        noise(enter((0, 64)), block=2),
        noise(enter((0, 64))).roll(1, 0),
        noise(enter((0, 64))).roll(1, 1),
    ]
    flat = torch.stack([part.flatten() for part in draws])
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 4 / flat.shape[1] ** 0.5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_features_of_a_token_and_tokens_of_a_sample_are_independent(distribution):
    draws = noise(enter((0, 2048)), 64, distribution=distribution).double()
    features, tokens = torch.corrcoef(draws.T), torch.corrcoef(draws.T.reshape(-1, 64).T)
    for correlations in (features, tokens):
        assert correlations.fill_diagonal_(0).abs().max() < 5 / 2048**0.5


def test_padding_has_no_noise_whatever_the_settings():
    for settings in ({}, {"scale": "row"}, {"where": "prompt"}):
        context = enter((0, 20), (1, 9), multiple=64)
        draws = noise(context, **settings)
        assert context.padding.tolist() == [False] * 29 + [True] * 35
        assert not draws[29:].any() and draws[:29].any()


def test_where_chooses_tokens_and_leaves_their_strength():
    context = enter((0, 20), (1, 10))
    everywhere = noise(context)
    prompt, answer = noise(context, where="prompt"), noise(context, where="answer")
    learned = torch.tensor(([False] * 10 + [True] * 10) + ([False] * 5 + [True] * 5))
    assert torch.equal(context.answers, learned)
    assert torch.equal(answer, everywhere * learned[:, None])
    assert torch.equal(prompt, everywhere * ~learned[:, None])


def test_the_schedule_warms_up_and_falls_to_its_end():
    def factors(**settings):
        return [neftune.factor(NoiseSchedule(**settings), step, 10) for step in range(10)]

    assert factors() == [1] * 10
    assert factors(shape="linear") == pytest.approx([1 - i / 10 for i in range(10)])
    assert factors(shape="linear", end=0.5) == pytest.approx([1 - i / 20 for i in range(10)])
    assert factors(warmup=4) == [0.25, 0.5, 0.75] + [1] * 7
    assert factors(warmup=0.4) == factors(warmup=4)
    cosine = factors(shape="cosine", warmup=2)
    assert cosine[:3] == [0.5, 1, 1] and cosine[6] == pytest.approx(0.5) and 0 < cosine[9] < 0.04


def test_strength_by_depth_is_read_from_a_map_or_a_function():
    def strengths(blocks=5, **settings):
        return neftune.strengths(Neftune(**settings), blocks)

    assert strengths() == {0: 5}
    assert strengths(alpha=0) == {}
    assert strengths(layers={"0": 5, "3": 2, "4": 0}) == {0: 5, 3: 2}
    assert strengths(layers={"shape": "constant", "first": 3}) == dict.fromkeys(range(5), 3)
    assert strengths(layers={"shape": "linear", "first": 4}) == {0: 4, 1: 3, 2: 2, 3: 1}
    assert strengths(layers={"shape": "linear", "first": 0, "last": 4}) == {1: 1, 2: 2, 3: 3, 4: 4}
    cosine = strengths(layers={"shape": "cosine", "first": 5, "last": 1})
    assert [cosine[0], cosine[2], cosine[4]] == pytest.approx([5, 3, 1])
    assert strengths(blocks=1, layers={"shape": "linear", "first": 4}) == {0: 4}
    with pytest.raises(ModelError, match=r"there is no block 5: the model has 5.*\n.*use 0 \(the embeddings\) to 4"):
        strengths(layers={"5": 1})


def noisy(config, **settings):
    """A small random model with noise, in training mode."""
    model = build(config)
    model.context.steps = 10
    neftune.add_neftune(model.module, model.context, Neftune(**settings))
    model.module.train()
    return model


def run(model, whole, step):
    """Logits, and what each block read and returned."""
    blocks, seen = neftune.decoder_blocks(model.module), []

    def record(_module, args, kwargs, output):
        read = args[0] if args else kwargs["hidden_states"]
        seen.append((read, output[0] if isinstance(output, tuple) else output))

    handles = [block.register_forward_hook(record, with_kwargs=True) for block in blocks]
    logits = model.logits(model.module, whole, step, torch.arange(len(whole.tokens)))
    for handle in handles:
        handle.remove()
    return logits, seen


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_noise_enters_at_the_input_of_the_chosen_blocks_and_nowhere_else(name):
    whole = pack(samples(11, 3, 17))
    model = noisy(CONFIGS[name], layers={"1": 3})
    _, ((embedded, first), (second, _)) = run(model, whole, 3)
    settings = Neftune(layers={"1": 3})
    width = first.shape[-1]
    added = neftune.noise(model.context, settings, 3, width, 1)
    torch.testing.assert_close((second - first)[0], added, atol=1e-5, rtol=0)
    clean = build(CONFIGS[name])
    clean.module.train()
    _, ((expected, _), _) = run(clean, whole, 3)
    assert torch.equal(embedded, expected)

    at_embeddings = noisy(CONFIGS[name], alpha=3)
    table = at_embeddings.module.get_input_embeddings()
    outputs = []
    table.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    _, (_, (second, _)) = run(at_embeddings, whole, 3)
    added = neftune.noise(at_embeddings.context, settings, 3, width, 0)
    plain = clean.module.get_input_embeddings()(torch.from_numpy(whole.tokens).long())
    torch.testing.assert_close(outputs[0][0] - plain, added, atol=1e-6, rtol=0)


@torch.no_grad()
def test_evaluation_and_saved_weights_have_no_noise():
    whole, clean = pack(samples(11, 3)), build(CONFIGS["llama"])
    expected, _ = run(clean, whole, None)
    model = noisy(CONFIGS["llama"], layers={"0": 5, "1": 5})
    training, _ = run(model, whole, 3)
    evaluated, _ = run(model, whole, None)
    assert torch.equal(evaluated, expected) and not torch.allclose(training, expected, atol=0.01)
    ours, theirs = model.module.state_dict(), clean.module.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@torch.no_grad()
def test_the_schedule_reaches_the_model():
    whole = pack(samples(11, 3))
    model = noisy(CONFIGS["llama"], layers={"1": 4}, schedule={"shape": "linear", "end": 0.2})
    _, (_, (noisy_input, _)) = run(model, whole, 5)
    _, (_, (clean, _)) = run(model, whole, None)
    model.context.enter(whole, CPU, 0, 5)
    expected = neftune.noise(model.context, Neftune(), 4 * 0.6, SMALL["hidden_size"], 1)
    torch.testing.assert_close((noisy_input - clean)[0], expected, atol=1e-5, rtol=0)


def test_without_strength_nothing_is_drawn(monkeypatch):
    def refuse(*_):
        raise AssertionError("a draw")

    monkeypatch.setattr(neftune, "draw", refuse)
    whole = pack(samples(11, 3))
    for settings in ({"alpha": 0}, {"layers": {"0": 0, "1": 0}}, {"layers": {"shape": "constant", "first": 0}}):
        run(noisy(CONFIGS["llama"], **settings), whole, 3)
    with pytest.raises(AssertionError, match="a draw"):
        run(noisy(CONFIGS["llama"], alpha=5), whole, 3)


def test_a_head_that_shares_the_embeddings_sees_no_noise():
    """Losses and gradients are those of a clean model that is given noisy embeddings."""
    config = LlamaConfig(**SMALL, tie_word_embeddings=True)
    whole = pack(samples(11, 3, 17))
    model = noisy(config, alpha=5)
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    logits, _ = run(model, whole, 3)
    logits.square().sum().backward()

    clean = build(config)
    table = clean.module.get_input_embeddings()
    clean.context.enter(whole, CPU, 0, 3)
    clean.context.asked = Asked(torch.arange(31))
    added = neftune.noise(clean.context, Neftune(), 5, SMALL["hidden_size"])
    embedded = table(torch.from_numpy(whole.tokens).long())[None] + added
    expected = clean.module(inputs_embeds=embedded, position_ids=clean.context.positions[None], use_cache=False).logits
    expected[0].square().sum().backward()
    torch.testing.assert_close(logits, expected[0])
    torch.testing.assert_close(model.module.lm_head.weight.grad, clean.module.lm_head.weight.grad)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_pass_draws_the_same_noise(reentrant):
    whole, gradients = pack(samples(11, 3, 17)), []
    for recompute in (False, True):
        model = noisy(CONFIGS["qwen3"], layers={"0": 5, "1": 5})
        if recompute:
            model.module.gradient_checkpointing_enable({"use_reentrant": reentrant})
        logits, _ = run(model, whole, 3)
        logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.module.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


@torch.no_grad()
def test_adapters_change_nothing_of_the_noise():
    """A fresh adapter is the identity, so the logits are those of the bare model with noise."""
    whole, settings = pack(samples(11, 3, 17)), Neftune(layers={"0": 5, "1": 2})
    bare, wrapped = noisy(CONFIGS["qwen3"], layers=settings.layers), build(CONFIGS["qwen3"])
    wrapped.context.steps = 10
    wrapped.module = get_peft_model(wrapped.module, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    neftune.add_neftune(wrapped.module, wrapped.context, settings)
    wrapped.context.attach(wrapped.module)
    expected, _ = run(bare, whole, 3)
    found, _ = run(wrapped, whole, 3)
    torch.testing.assert_close(found, expected)
    clean, _ = run(build(CONFIGS["qwen3"]), whole, 3)
    assert not torch.allclose(found, clean, atol=0.01)


@torch.no_grad()
def test_noise_stands_where_transformers_puts_it():
    """Only the numbers differ: with the same ones, the model computes the same."""
    config, whole = CONFIGS["gemma"], pack(samples(31))
    model = noisy(config, alpha=5)
    found, _ = run(model, whole, 3)
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager").train()
    theirs.load_state_dict(model.module.state_dict())
    activate_neftune(theirs, 5)
    added = neftune.noise(model.context, Neftune(), 5, SMALL["hidden_size"])
    uniform = torch.Tensor.uniform_
    torch.Tensor.uniform_ = lambda self, low, high: self.copy_(added[None])
    try:
        expected = theirs(torch.from_numpy(whole.tokens).long()[None], use_cache=False).logits[0]
    finally:
        torch.Tensor.uniform_ = uniform
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_uniform_numbers_are_centred():
    ends = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)
    low, high = signed_unit(ends)
    assert float(low) == -float(high) and float(high) == 1 - 2**-24
