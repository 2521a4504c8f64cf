"""What a model is, without its weights: config.json as transformers reads it."""

import json
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError


def load_architecture(settings: ModelSection) -> PretrainedConfig:
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
        config = AutoConfig.from_pretrained(settings.path, revision=settings.revision, trust_remote_code=False)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ModelError(
            f"the model cannot be loaded: {first_line(error)}",
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


def first_line(error: BaseException) -> str:
    """Of its message, or its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
