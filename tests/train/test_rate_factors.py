"""Which parameters decay, and which are trained faster."""

import torch
from transformers import AutoModelForCausalLM

from dist_sft.config.sections import LoraTuning, Optimizer
from dist_sft.model.adapters import with_adapters
from dist_sft.train.optimizer import parameter_groups
from tests.model.test_adapters import CONFIGS


def grouped(ratio):
    """{(decay, factor): names of its parameters}, of an adapter with norms and a module trained whole."""
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen3"])
    tuning = LoraTuning(kind="lora", rank=4, dora=True, modules_to_save=("lm_head", "norm"))
    adapted = with_adapters(model, tuning, seed=0)
    names = {id(p): name for name, p in adapted.named_parameters()}
    groups = parameter_groups(adapted, Optimizer(weight_decay=0.1), ratio)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in adapted.parameters())
    return {(g["weight_decay"], g["rate_factor"]): [names[id(p)] for p in g["params"]] for g in groups}


def test_matrices_b_are_trained_faster_and_nothing_else_is():
    groups = grouped(16.0)
    assert set(groups) == {(0.1, 1.0), (0.1, 16.0), (0.0, 1.0)}
    assert len(groups[0.1, 16.0]) == 14 and all(".lora_B." in name for name in groups[0.1, 16.0])
    assert not any(".lora_B." in name for key, names in groups.items() for name in names if key != (0.1, 16.0))


def test_norms_do_not_decay_and_neither_do_those_of_dora():
    vectors = grouped(1.0)[0.0, 1.0]
    assert sum("lora_magnitude_vector" in name for name in vectors) == 14
    assert [name for name in vectors if "lora_" not in name] == [
        "base_model.model.model.norm.modules_to_save.default.weight"
    ]


def test_a_ratio_of_one_changes_nothing():
    assert set(grouped(1.0)) == {(0.1, 1.0), (0.0, 1.0)}
    layer = torch.nn.Linear(3, 2)
    assert [group["params"] for group in parameter_groups(layer, Optimizer())] == [[layer.weight], [layer.bias]]
