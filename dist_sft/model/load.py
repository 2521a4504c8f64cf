"""Load a model in shards, adapt it, and prepare it for packs.

config -> PackedModel (the engine is built around its module)
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.deepspeed import HfDeepSpeedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dist_sft.config.sections import LoraTuning, ModelSection
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.model import attention, noise
from dist_sft.model.blocks import compile_blocks, recompute_activations
from dist_sft.model.context import PackContext
from dist_sft.model.head import attach_head
from dist_sft.model.packed import PackedModel
from dist_sft.model.precision import multiply_without_emulation


def load_config(settings: ModelSection) -> PretrainedConfig:
    """The model's architecture; reads no weights. Raises ModelError."""
    folder = Path(settings.path)
    local = folder.exists() or settings.path.startswith((".", "/", "~")) or settings.path.count("/") > 1
    if local and not (folder / "config.json").is_file():
        raise ModelError(
            "there is no model here" if folder.is_dir() else "there is no such folder",
            where=settings.path,
            fix="model.path is a hub id, or a folder with config.json, weights and tokenizer",
        )
    try:
        config = AutoConfig.from_pretrained(settings.path, revision=settings.revision)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ModelError(
            f"the model cannot be loaded: {_first_line(error)}",
            where=settings.path,
            fix="check model.path: a folder with config.json and weights (there is none of this name here), or a hub "
            "id (and HF_TOKEN if it is gated)",
        ) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{config.model_type} is not a causal language model that transformers knows",
            where=settings.path,
            fix="choose a decoder-only model",
        )
    return config


def load(settings: ModelSection, deepspeed: dict[str, Any], seed: int, device: torch.device) -> PackedModel:
    """The model of a run, ready for deepspeed.initialize.

    Under ZeRO-3 each parameter is partitioned as it is created (zero.Init): no device ever holds the whole model.
    transformers reads the weights on the host of rank 0 and hands them out. Raises ModelError.
    """
    config = load_config(settings)
    attention.register()
    partitioned = HfDeepSpeedConfig(deepspeed)  # transformers looks for a living one while it loads
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            settings.path,
            revision=settings.revision,
            config=config,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=attention.choose(settings.attention, device.type, settings.dtype, config),
        )
    except KeyError as error:
        raise ModelError(
            f"the architecture {config.model_type} does not use transformers' attention interface",
            where=settings.path,
            fix="choose another model: its samples could not be kept apart",
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model cannot be loaded: {_first_line(error)}",
            where=settings.path,
            fix="the folder needs config.json and weights of a causal language model that transformers knows",
        ) from error
    model.config.use_cache = False  # with a cache, samples of a pack see each other
    if isinstance(settings.tuning, LoraTuning):
        model = with_adapters(model, settings.tuning, seed)
    if settings.gradient_checkpointing:
        frozen = settings.tuning.kind == "lora"
        recompute_activations(model, float(settings.gradient_checkpointing), partitioned.is_zero3(), frozen)
    pack = PackContext()
    if settings.neftune:
        noise.add_neftune(model.get_input_embeddings(), pack, settings.neftune)
    noise.replace_dropout(model, pack)
    multiply_without_emulation(model, device)
    attach_head(model, pack)
    if settings.compile:
        compile_blocks(model)
    pack.attach(model)
    return PackedModel(model, pack, seed, device)


def with_adapters(model: Any, tuning: LoraTuning, seed: int) -> Any:
    """Low-rank adapters that start the same on every rank and in every world."""
    from peft import LoraConfig, get_peft_model

    head = "lm_head" in tuning.targets  # runs on the supervised positions only, which dropout cannot tell apart
    if head and tuning.dropout:
        raise ModelError("LoRA on lm_head cannot have dropout", fix="set model.tuning.dropout=0, or leave lm_head out")
    targets = tuning.targets if isinstance(tuning.targets, str) else list(tuning.targets)
    torch.manual_seed(seeds.key(seed, "lora") % 2**63)
    settings = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,  # type: ignore[arg-type]  # peft only divides it by r
        lora_dropout=tuning.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"LoRA cannot be put there: {_first_line(error)}",
            where=f"model.tuning.targets={tuning.targets}",
            fix=f"use all-linear, or some of: {', '.join(linear)}",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
