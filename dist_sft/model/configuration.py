"""config.json as transformers reads it. Who only looks at it takes `model.architecture`, without transformers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model.headers import config_content


def load_configuration(settings: ModelSection) -> PretrainedConfig:
    """Reads no weights. Raises ModelError."""
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


@contextmanager
def quiet() -> Iterator[None]:
    """transformers warns of what a model without weights, or a copy of it, is not."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def spelled_out(config: PretrainedConfig) -> dict[str, Any]:
    """As JSON values: "all" that it says, and its part for "text", None where that is all."""
    text = config.get_text_config()
    with quiet():
        return {"all": _values(config), "text": None if text is config else _values(text)}


def _values(config: PretrainedConfig) -> dict[str, Any]:
    """Each value by each of its names: transformers' own, those that its class maps to it, those that it works out."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    kind = type(config)
    worked_out = [name for name in dir(kind) if not name.startswith("_") and isinstance(getattr(kind, name), property)]
    worked_out = [name for name in worked_out if name != "torch_dtype"]  # dtype's former name: text without torch
    for name in (*config.attribute_map, *worked_out, "_commit_hash"):
        try:
            value = getattr(config, name, None)
        except Exception:  # noqa: BLE001  # of a config that refuses to tell (Gemma 4 its head_dim)
            continue
        if value is None or isinstance(value, bool | int | float | str | list):
            values.setdefault(name, value)
    return values
