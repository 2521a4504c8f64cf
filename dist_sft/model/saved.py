"""Write trained weights so that plain transformers, or plain peft, loads them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from dist_sft.config.sections import LoraTuning, ModelSection
from dist_sft.model.load import load_config, with_adapters


def save_full(settings: ModelSection, weights: dict[str, Tensor], stop_ids: list[int], out: Path) -> None:
    """A folder that AutoModelForCausalLM loads, in the precision that was trained."""
    dtype = getattr(torch, settings.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(settings), dtype=dtype)
    cast = {name: tensor.to(dtype) for name, tensor in weights.items()}
    missing, unexpected = model.load_state_dict(cast, strict=False, assign=True)
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    assert not unexpected and set(missing) <= tied, f"missing {missing}, unexpected {unexpected}"
    model.tie_weights()
    _stop_at(model, settings, stop_ids)
    model.save_pretrained(out)


def save_adapter(
    settings: ModelSection, weights: dict[str, Tensor], stop_ids: list[int], out: Path, merge: bool
) -> None:
    """A folder that peft loads onto the base model; or the base model with the adapter added to its weights."""
    assert isinstance(settings.tuning, LoraTuning)
    dtype = getattr(torch, settings.dtype)
    base = AutoModelForCausalLM.from_pretrained(settings.path, revision=settings.revision, dtype=dtype)
    _stop_at(base, settings, stop_ids)
    model = with_adapters(base, settings.tuning, seed=0)
    adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert set(weights) == adapters, f"not the adapter's weights: {sorted(set(weights) ^ adapters)[:4]}"
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, strict=False)
    (model.merge_and_unload() if merge else model).save_pretrained(out)


def _stop_at(model: Any, settings: ModelSection, stop_ids: list[int]) -> None:
    """Let generation end at the stop token that was trained, besides where the base model ended."""
    try:
        generation = GenerationConfig.from_pretrained(settings.path, revision=settings.revision or "main")
    except OSError:  # a base model need not have one
        generation = GenerationConfig.from_model_config(model.config)
    before = generation.eos_token_id
    known = before if isinstance(before, list) else [] if before is None else [before]
    generation.eos_token_id = [*stop_ids, *(id_ for id_ in known if id_ not in stop_ids)]
    model.generation_config = generation
