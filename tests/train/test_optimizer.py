"""Which optimizer is built, and which parameters decay."""

import importlib.util

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from dist_sft.config.sections import Optimizer
from dist_sft.core.errors import MissingExtra
from dist_sft.train.optimizer import build_optimizer, parameter_groups
from tests.model.test_attention import SMALL


def model(tied=False):
    """Qwen2: it has biases, and norms."""
    return AutoModelForCausalLM.from_config(Qwen2Config(**SMALL, tie_word_embeddings=tied))


def decaying(module, **settings):
    """Names of the parameters that decay; all others are in a group that does not."""
    names = {id(p): name for name, p in module.named_parameters()}
    groups = parameter_groups(module, Optimizer(weight_decay=0.1, **settings))
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(trained)
    assert {group["weight_decay"] for group in groups} <= {0.0, 0.1}
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_matrices_decay_and_norms_and_biases_do_not():
    module = model()
    assert decaying(module) == {name for name, p in module.named_parameters() if p.ndim == 2}
    assert {"model.embed_tokens.weight", "lm_head.weight"} < decaying(module)
    assert not any("norm" in name or "bias" in name for name in decaying(module))


def test_all_may_decay():
    module = model()
    assert decaying(module, decay="all") == {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_embeddings_may_be_left_out(decay):
    module = model()
    every = decaying(module, decay=decay)
    assert decaying(module, decay=decay, decay_embeddings=False) == every - {"model.embed_tokens.weight"}
    tied = model(tied=True)
    assert "model.embed_tokens.weight" in decaying(tied, decay=decay)
    without = decaying(tied, decay=decay, decay_embeddings=False)
    assert "model.embed_tokens.weight" not in without and tied.lm_head.weight is tied.model.embed_tokens.weight


def test_only_trained_parameters_are_in_a_group_and_adapters_of_embeddings_are_embeddings():
    targets = ["embed_tokens", "q_proj"]
    module = get_peft_model(model(), LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
    every = decaying(module)
    assert every and all("lora_" in name for name in every)
    assert any("lora_embedding_A" in name for name in every)
    assert decaying(module, decay_embeddings=False) == {name for name in every if "embed_tokens" not in name}


@pytest.mark.parametrize("settings", [{}, {"decay": "all"}, {"decay_embeddings": False}])
def test_under_zero_3_a_parameter_is_judged_by_its_own_shape(settings):
    """DeepSpeed leaves an empty tensor, and the shape in ds_shape."""
    whole, sharded = model(), model()
    for parameter in sharded.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert decaying(sharded, **settings) == decaying(whole, **settings)


def test_one_step_without_gradients_shrinks_what_decays_and_nothing_else():
    module = model()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    settings = Optimizer(weight_decay=0.1, decay_embeddings=False)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(module, settings, learning_rate=0.5, offloaded=False).step()
    chosen = decaying(module, decay_embeddings=False)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if name in chosen else 1))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_eight_bits_without_the_package_is_an_error_that_names_it():
    with pytest.raises(MissingExtra, match="bitsandbytes is not installed") as error:
        build_optimizer(nn.Linear(2, 2), Optimizer(name="adamw8bit"), 1e-3, offloaded=False)
    assert error.value.fix == "pip install dist-sft[gpu]"
