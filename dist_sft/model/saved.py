"""Write trained weights so that plain transformers, or plain peft, loads them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from dist_sft.config.sections import LoraTuning, ModelSection
from dist_sft.core.errors import CheckpointError
from dist_sft.model.adapters import NAME, is_tied, trained_shapes, with_adapters
from dist_sft.model.configuration import load_configuration
from dist_sft.model.generation import save_generation
from dist_sft.model.meta import laid_out
from dist_sft.model.stored import stored_weights
from dist_sft.model.streamed import save_streamed
from dist_sft.model.text_path import beside_text, freeze_beside_text


def save_full(settings: ModelSection, weights: Mapping[str, Tensor], stop_ids: list[int], out: Path) -> None:
    """A folder that AutoModelForCausalLM loads, in the precision that was trained; one file's weights at a time."""
    dtype = getattr(torch, settings.dtype)
    config = load_configuration(settings)
    model = laid_out(config, dtype)
    save_streamed(model, _with_frozen(settings, config, weights), out)
    save_generation(settings, stop_ids, out)


def save_adapter(
    settings: ModelSection,
    weights: Mapping[str, Tensor],
    stop_ids: list[int],
    out: Path,
    merge: bool,
    starts: dict[str, Tensor] | None = None,
) -> None:
    """A folder that peft loads onto the base model; or the base model with the adapter added to its weights, a layer at
    a time where `stored_weights` reads them so.

    starts: what a PiSSA adapter started from, see `starts_of`. Raises CheckpointError where the weights do not fit.
    """
    assert isinstance(settings.tuning, LoraTuning)
    dtype, config, tuning = getattr(torch, settings.dtype), load_configuration(settings), settings.tuning
    if tuning.init == "pissa":
        weights, tuning = _from_zero(weights, starts or {}, tuning)
    with torch.device("meta"):
        base = laid_out(config, dtype)
        freeze_beside_text(base, beside_text(config))
        model = with_adapters(base, tuning, seed=0)
    _refuse_misfits(weights, trained_shapes(model))
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, strict=False, assign=True)
    if not merge:
        model.save_pretrained(out, save_embedding_layers=False)  # those that were trained are saved anyway
        save_generation(settings, stop_ids, out)
        return
    base_weight = stored_weights(settings, laid_out(config, dtype))
    if _parts_ends(model):
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    merged = laid_out(config, dtype)
    save_streamed(merged, _merged(model, base_weight), out)
    save_generation(settings, stop_ids, out)


def _with_frozen(
    settings: ModelSection, config: PretrainedConfig, weights: Mapping[str, Tensor]
) -> Callable[[str], Tensor]:
    """A function: name in the model -> what was trained, or the base's where text never reaches it."""
    dtype, frozen = getattr(torch, settings.dtype), beside_text(config)
    if not frozen:
        return lambda name: weights[name].to(dtype)
    model = laid_out(config, dtype)
    base, frozen = stored_weights(settings, model), frozen | dict(model.named_buffers()).keys()
    return lambda name: base(name) if name in frozen and name not in weights else weights[name].to(dtype)


def _merged(model: Any, base_weight: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """A function: name in the base model -> its weight with what was trained. model: adapted, its base without weights.

    peft merges a layer at a time, which has its weight only meanwhile.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    inner = model.get_base_model()
    whole = {
        f"{path}.{name}": value.detach()
        for path, module in inner.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
        for name, value in module.modules_to_save[NAME].named_parameters()
    }

    def weight(name: str) -> Tensor:
        if name in whole:
            return whole[name]
        path, _, leaf = name.rpartition(".")
        module = inner.get_submodule(path)
        if not isinstance(module, LoraLayer) or leaf != "weight":
            return base_weight(name)
        layer: Any = module.get_base_layer()
        empty, layer.weight = layer.weight, nn.Parameter(base_weight(name), requires_grad=False)
        module.merge()
        found, layer.weight = layer.weight.detach(), empty
        return found

    return weight


def _from_zero(
    weights: Mapping[str, Tensor], starts: dict[str, Tensor], tuning: LoraTuning
) -> tuple[Mapping[str, Tensor], LoraTuning]:
    """B A - B0 A0 as one adapter of twice the rank, [B, -B0] [A; A0], with the same scale.

    weights: of the adapter as it was trained.
    """
    joined = dict(weights)
    for name, start in starts.items():
        if name not in weights or weights[name].shape != start.shape:
            raise CheckpointError(
                f"what {name} started from does not fit what it became", where="adapter_starts.safetensors"
            )
        into_b = ".lora_B." in name
        joined[name] = torch.cat([weights[name], -start.float() if into_b else start.float()], dim=int(into_b))
    more = 2 if tuning.scaling == "alpha/rank" else 2**0.5
    return joined, tuning.model_copy(update={"rank": 2 * tuning.rank, "alpha": more * tuning.alpha, "init": "default"})


def _refuse_misfits(weights: Mapping[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError for weights that are not exactly those that were trained."""
    if names := sorted(set(weights) ^ set(shapes)):
        kind = "is missing" if names[0] in shapes else "was not trained"
        raise CheckpointError(f"{len(names)} weights do not belong to the adapter or are missing; {names[0]} {kind}")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{name} is {list(weights[name].shape)} in the checkpoint and {list(shape)} in the model",
                fix="export with the base model that was trained, or another step: --step N",
            )


def _parts_ends(model: Any) -> bool:
    """Whether a head that is the embedding becomes another weight, since an adapter is added to one of the two."""
    from peft.tuners.lora import LoraLayer

    ends = (model.get_output_embeddings(), model.get_input_embeddings())
    return is_tied(model) and any(isinstance(end, LoraLayer) for end in ends)
