"""Dropout on attention weights belongs to a sample: no pack, rank, order of calls or recomputation can change it."""

import copy

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model import attention
from dist_sft.model.attention.call import Call
from dist_sft.model.attention.dropout import drop
from dist_sft.model.attention.segments import segments
from dist_sft.model.configuration import load_configuration
from dist_sft.model.load import load
from tests.model.test_attention import CONFIGS, SMALL, build, pack, samples
from tests.model.test_backends import tensors
from tests.model.test_noise import enter


def dropped(share=0.25, sample=7, layer=0, first_head=0, heads=4, queries=60, keys=60, first_query=0, first_key=0):
    """bool[H, Q, K]: which of these weights are dropped."""
    call = Call(None, None, None, share, layer, first_head)
    return drop(torch.ones(1, heads, queries, keys), sample, call, first_query, first_key)[0] == 0


def test_the_expectation_is_kept():
    weights = torch.rand(1, 8, 200, 200)
    kept = drop(weights, 3, Call(None, None, None, 0.2, 0), 0, 0)
    assert kept.mean() == pytest.approx(float(weights.mean()), rel=0.01)
    assert (kept == 0).float().mean() == pytest.approx(0.2, abs=0.005)
    assert set((kept / weights).unique().tolist()) <= {0.0, *((kept / weights)[kept > 0].unique().tolist())}


def test_each_sample_layer_and_head_has_dropout_of_its_own():
    draws = [dropped(), dropped(sample=8), dropped(layer=1)]
    flat = torch.cat([draw.flatten(1) for draw in draws]).float()
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.1


def test_rows_and_columns_are_not_correlated():
    draw = dropped(heads=1)[0].float()
    assert torch.corrcoef(draw).fill_diagonal_(0).abs().max() < 0.6
    assert draw.mean(0).std() < 0.12 and draw.mean(1).std() < 0.12


def test_a_part_of_the_heads_queries_and_keys_is_a_part_of_the_whole():
    """What a neighbouring rank or a block of queries draws."""
    part = dropped(first_head=2, heads=2, first_query=10, queries=20, first_key=5, keys=9)
    assert torch.equal(part, dropped()[2:, 10:30, 5:14])


def test_a_sample_is_computed_alike_alone_and_packed_and_otherwise_in_another_step():
    call = Call(None, None, None, 0.3, layer=2)
    packed, alone = enter((3, 50), (7, 20), (9, 4)), enter((7, 20))
    inputs = tensors(packed)
    whole = segments(*inputs, packed, call)
    part = [tensor[50:70] for tensor in inputs]
    torch.testing.assert_close(segments(*part, alone, call), whole[50:70], atol=0, rtol=0)
    for other in (enter((7, 20), step=4), enter((7, 20), seed=1), enter((8, 20))):
        assert not torch.equal(segments(*part, other, call), whole[50:70])


@pytest.mark.parametrize(
    "config", [LlamaConfig(**SMALL, attention_dropout=0.2), CONFIGS["gpt2"]], ids=["llama", "gpt2"]
)
def test_training_has_dropout_and_evaluation_has_none(config):
    model, whole, at = build(config), pack(samples(11, 17)), torch.arange(28)
    plain = model.logits(model.module.eval(), whole, None, at)
    model.context.attention_dropout = 0.2
    assert torch.equal(model.logits(model.module, whole, None, at), plain)
    once, again, later = (model.logits(model.module, whole, step, at) for step in (3, 3, 4))
    assert torch.equal(once, again) and not torch.equal(once, later) and not torch.equal(once, plain)


def test_activations_that_are_computed_again_draw_the_same():
    """Else gradients would be of another network than the loss."""
    gradients = []
    for recompute in (False, True):
        model = build(LlamaConfig(**SMALL, attention_dropout=0.3))
        model.context.attention_dropout = 0.3
        if recompute:
            model.module.gradient_checkpointing_enable({"use_reentrant": False})
        model.module.train()
        logits = model.logits(model.module, pack(samples(11, 17)), 3, torch.arange(28))
        logits.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.module.parameters()]))
    torch.testing.assert_close(*gradients, atol=0, rtol=0)


def test_a_setting_beats_what_config_json_says():
    for config in (LlamaConfig(**SMALL, attention_dropout=0.1), GPT2Config(attn_pdrop=0.1)):
        assert attention.dropout_of(None, config) == 0.1
        assert attention.dropout_of(0.0, config) == 0.0
        assert attention.dropout_of(0.3, config) == 0.3
    assert attention.dropout_of(None, CONFIGS["llama"]) == 0.0


@pytest.mark.parametrize(("setting", "share"), [(None, 0.1), (0.0, 0.0), (0.25, 0.25)])
def test_a_model_is_loaded_with_the_dropout_of_the_run(tmp_path, setting, share):
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, attention_dropout=0.1)
    source = build(copy.deepcopy(config)).module
    source.config._attn_implementation = "eager"
    source.save_pretrained(tmp_path)
    settings = ModelSection(path=str(tmp_path), dtype="float32", attention_dropout=setting)
    model = load(
        settings, load_configuration(settings), {"train_micro_batch_size_per_gpu": 1}, 0, torch.device("cpu"), steps=1
    )
    assert model.context.attention_dropout == share
    model.logits(model.module.train(), pack(samples(11)), 0, torch.arange(11))


def test_dropout_that_the_run_does_not_know_of_is_refused():
    model = build(LlamaConfig(**SMALL, attention_dropout=0.1))
    with pytest.raises(ModelError, match=r"dropout of 0.1 reaches attention, and the run's is 0"):
        model.logits(model.module.train(), pack(samples(11)), 0, torch.arange(11))
