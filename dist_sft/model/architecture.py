"""What a model is, without its weights: config.json as transformers reads it."""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model.headers import config_content


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
    _refuse_foreign_code(settings)
    try:
        config = AutoConfig.from_pretrained(settings.path, revision=settings.revision, trust_remote_code=False)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ModelError(
            f"the model cannot be loaded: {first_line(error)}",
            where=settings.path,
            fix="check model.path: a folder with config.json and weights (there is none of this name here), or a hub "
            "id (and HF_TOKEN if it is gated)",
        ) from error
    if config.model_type not in {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}:
        raise ModelError(
            f"{config.model_type} is not a causal language model that transformers knows",
            where=settings.path,
            fix="choose a decoder-only model",
        )
    return config


def auto_class(config: PretrainedConfig) -> Any:
    """transformers' class that makes a model of a config: of the same class as its checkpoint.

    A type that is known with towers only, or whose checkpoint was saved with them, keeps them.
    """
    of_text = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    with_towers = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(config.model_type)
    saved = getattr(config, "architectures", None) or ()
    if of_text is None or (with_towers in saved and of_text not in saved):
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def head_size(text: PretrainedConfig) -> int:
    """Of an attention head; of most of them, where layers differ (Gemma 4 then refuses to tell)."""
    try:
        size = getattr(text, "head_dim", None)
    except Exception:  # noqa: BLE001  # transformers' own, which is no AttributeError
        size = vars(text).get("head_dim")
    return int(size or text.hidden_size // (getattr(text, "num_attention_heads", None) or 1))


def _refuse_foreign_code(settings: ModelSection) -> None:
    """Raise ModelError for a model whose code is not in transformers: code of a repository is never run."""
    try:
        content = json.loads(config_content(settings) or b"{}")
        mapped = content.get("auto_map") or {}
    except (ValueError, AttributeError):
        return  # transformers says what is wrong with the file
    names = content.get("architectures") or []
    known = content.get("model_type") in CONFIG_MAPPING_NAMES
    if mapped and not (known and all(hasattr(transformers, str(name)) for name in names)):
        what = ", ".join(map(str, names)) or content.get("model_type") or "the model"
        raise ModelError(
            f"{what} is code of the model's own repository (auto_map in its config.json), which is never run here",
            where=settings.path,
            fix="choose a model that transformers has the code of; some have a second repository for it, whose name "
            "ends in -hf",
        )


def first_line(error: BaseException) -> str:
    """Of its message, or its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
