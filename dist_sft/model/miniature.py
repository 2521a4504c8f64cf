"""A model of the same architecture that fits anywhere: random, few layers, few ids. For proofs, not for training."""

import copy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from dist_sft.model import attention
from dist_sft.model.context import PackContext
from dist_sft.model.head import attach_head
from dist_sft.model.packed import PackedModel

VOCABULARY = 256


def miniature(config: PretrainedConfig, wanted: str = "auto") -> PackedModel:
    """One layer of each kind, at least two, as wide as the model itself; float32 on CPU.

    wanted: model.attention. Raises ModelError where that back end needs a GPU, KeyError and ValueError as
    transformers does for a model that does not use its attention interface.
    """
    attention.register()
    small = copy.deepcopy(config)
    text = small.get_text_config()
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or []))
    text.num_hidden_layers = max(2, len(kinds))
    if kinds:
        text.layer_types = (kinds * 2)[: text.num_hidden_layers]
    text.vocab_size, text.pad_token_id, text.use_cache = VOCABULARY, None, False
    implementation = attention.choose(wanted, "cpu", "float32", config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(small, attn_implementation=implementation, dtype=torch.float32)
    context = PackContext()
    context.attach(model)
    attach_head(model, context)
    return PackedModel(model.eval(), context, seed=0, device=torch.device("cpu"))
