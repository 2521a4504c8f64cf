"""Load a model in shards, adapt it, and prepare it for packs.

config -> PackedModel (the engine is built around its module)
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from dist_sft.config.sections import LoraTuning, ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model import attention, dropout, neftune
from dist_sft.model.adapters import with_adapters
from dist_sft.model.architecture import Architecture
from dist_sft.model.blocks import compile_blocks, recompute_activations
from dist_sft.model.complete import compare, of_report
from dist_sft.model.configuration import auto_class, first_line
from dist_sft.model.context import PackContext
from dist_sft.model.head import attach_head
from dist_sft.model.headers import read_headers
from dist_sft.model.packed import PackedModel
from dist_sft.model.precision import multiply_without_emulation
from dist_sft.model.stored import refuse_two_heads
from dist_sft.model.text_path import beside_text, freeze_beside_text


def load(
    settings: ModelSection,
    configuration: PretrainedConfig,
    deepspeed: dict[str, Any],
    seed: int,
    device: torch.device,
    steps: int,
    starts: dict[str, Tensor] | None = None,
) -> PackedModel:
    """The model of a run, ready for deepspeed.initialize.

    configuration: see `Architecture`; it stays as it is. steps: of the whole run. starts: what its adapters started
    from, on resume.

    Under ZeRO-3 each parameter is partitioned as it is created (zero.Init): no device ever holds the whole model.
    transformers reads the weights on the host of rank 0 and hands them out. Raises ModelError.
    """
    config = copy.deepcopy(configuration)
    if headers := read_headers(settings, ask=False):  # on each rank alike: under ZeRO-3 only the first one would see it
        compare(Architecture.of(config), headers).refuse(settings.path)
    refuse_two_heads(settings, config)
    beside = beside_text(configuration)
    attention.register()
    attention_dropout = attention.dropout_of(settings.attention_dropout, config)
    _set_dropout(config, attention_dropout)
    implementation = attention.choose(settings.attention, device.type, settings.dtype, config, attention_dropout)
    partitioned = HfDeepSpeedConfig(deepspeed)  # transformers looks for a living one while it loads
    try:
        model: Any
        model, report = auto_class(config).from_pretrained(
            settings.path,
            revision=settings.revision,
            config=config,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=implementation,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are in the report, which is refused below by name
            output_loading_info=True,
        )
    except KeyError as error:
        raise ModelError(
            f"the architecture {config.model_type} does not use transformers' attention interface",
            where=settings.path,
            fix="choose another model: its samples could not be kept apart",
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the model cannot be loaded: {first_line(error)}",
            where=settings.path,
            fix="the folder needs config.json and weights of a causal language model that transformers knows",
        ) from error
    of_report(report, model).refuse(settings.path)
    freeze_beside_text(model, beside)
    model.config.use_cache = False  # with a cache, samples of a pack see each other
    if isinstance(settings.tuning, LoraTuning):
        model = with_adapters(model, settings.tuning, seed, starts)
    if settings.gradient_checkpointing:
        frozen = settings.tuning.kind == "lora"
        recompute_activations(model, float(settings.gradient_checkpointing), partitioned.is_zero3(), frozen)
    pack = PackContext(steps=steps, attention_dropout=attention_dropout)
    if settings.neftune:
        neftune.add_neftune(model, pack, settings.neftune)
    dropout.replace_dropout(model, pack)
    if settings.residual_dropout:
        dropout.add_residual_dropout(model, pack, settings.residual_dropout)
    multiply_without_emulation(model, device)
    attach_head(model, pack)
    if settings.compile:
        compile_blocks(model)
    pack.attach(model)
    model.train()  # transformers hands out a model in evaluation mode, in which no block recomputes its activations
    return PackedModel(model, pack, seed, device)


def _set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Let the model itself say what is true; what is dropped is decided in `model.attention`."""
    text = config.get_text_config()
    for name in attention.DROPOUTS:
        if hasattr(text, name):
            setattr(text, name, dropout)
