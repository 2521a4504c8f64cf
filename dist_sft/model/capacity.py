"""How many parameters a kind of tuning trains, from the architecture alone: no weights are read.

config.json, model.tuning -> Trained
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from dist_sft.config.sections import FullTuning, LoraTuning
from dist_sft.core.errors import ModelError
from dist_sft.model.architecture import auto_class
from dist_sft.model.blocks import blocks_of
from dist_sft.model.text_path import beside_text, freeze_beside_text, has_parts_beside_text, is_beside_text


@dataclass(frozen=True, slots=True)
class Trained:
    """Counts of parameters.

    base      of the model
    per_rank  that each rank of the adapter adds
    rank      of the adapter; 0 in full tuning
    norms     of DoRA
    whole     of modules that are trained in full: all but the frozen ones, in full tuning
    frozen    of the model, that text never reaches
    covered   share of the linear layers' parameters, without the head, that have an adapter or are trained in full
    """

    base: int
    per_rank: int
    rank: int
    norms: int
    whole: int
    covered: float
    frozen: int = 0

    @property
    def total(self) -> int:
        return self.per_rank * self.rank + self.norms + self.whole


def laid_out(config: PretrainedConfig, dtype: torch.dtype | None = None) -> Any:
    """The model without weights: on the meta device. The config stays as it is, which transformers would write into."""
    with torch.device("meta"):
        return auto_class(config).from_config(copy.deepcopy(config), dtype=dtype or config.dtype)


def count_parameters(config: PretrainedConfig) -> int:
    """Of the architecture."""
    return sum(parameter.numel() for parameter in laid_out(config).parameters())


def count_trained(config: PretrainedConfig, tuning: FullTuning | LoraTuning) -> Trained:
    """Exact, for the layers are laid out as the model lays them out, on the meta device. Raises ModelError."""
    model = laid_out(config)
    frozen = freeze_beside_text(model, beside_text(config))
    base = sum(p.numel() for p in model.parameters())
    if isinstance(tuning, FullTuning):
        return Trained(base, 0, 0, 0, base - frozen, 1.0, frozen)
    refuse_absent_targets(model, tuning)
    head, linear_ones = model.get_output_embeddings(), _all_linear(model)
    reached = (name for name, module in model.named_modules() if not is_beside_text(module))
    saved = [name for name in reached if any(_ends_in(name, end) for end in tuning.modules_to_save)]
    whole = {id(p): p.numel() for name in saved for p in model.get_submodule(name).parameters()}
    per_rank = norms = covered = linear = 0
    for name, module, sizes in _layers(model):
        inside = any(name == one or name.startswith(f"{one}.") for one in saved)
        adapted = not inside and _is_target(name, module, linear_ones, tuning.targets)
        if adapted:
            per_rank += sum(sizes)
            norms += sizes[1] if tuning.dora else 0
        if module is not head and not isinstance(module, nn.Embedding):
            linear += sizes[0] * sizes[1]
            covered += sizes[0] * sizes[1] * (adapted or inside)
    return Trained(base, per_rank, tuning.rank, norms, sum(whole.values()), covered / max(linear, 1), frozen)


def refuse_absent_targets(model: Any, tuning: LoraTuning) -> None:
    """Raise ModelError where a target of the adapter is no layer of the model: peft would leave it out in silence."""
    linear_ones, layers = _all_linear(model), list(_layers(model))
    for target in (tuning.targets,) if isinstance(tuning.targets, str) else tuning.targets:
        wanted = target if isinstance(tuning.targets, str) else (target,)
        if not any(_is_target(name, module, linear_ones, wanted) for name, module, _ in layers):
            known = sorted({name.rpartition(".")[2] for name, _, _ in layers})
            raise ModelError(
                f"LoRA cannot be put there: the model has no layer {target}",
                where="model.tuning.targets",
                fix=f"use all-linear, or some of: {', '.join(known)}",
            )


def tensor_sizes(config: PretrainedConfig, tuning: FullTuning | LoraTuning) -> tuple[list[int], list[int]]:
    """Numbers in each tensor of the model, and in each that adapters add (A, B, and the norms of DoRA)."""
    model = laid_out(config)
    freeze_beside_text(model, beside_text(config))
    base = [p.numel() for p in model.parameters()]
    if isinstance(tuning, FullTuning):
        return base, []
    linear_ones, added = _all_linear(model), list[int]()
    for name, module, (into, out) in _layers(model):
        if _is_target(name, module, linear_ones, tuning.targets):
            added += [into * tuning.rank, out * tuning.rank, *([out] if tuning.dora else [])]
    return base, added


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, int]]]:
    """Layers that can have an adapter, with the sizes of what goes in and of what comes out; text reaches them."""
    for name, module in model.named_modules():
        if is_beside_text(module):
            continue
        if isinstance(module, nn.Linear):
            yield name, module, (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            yield name, module, (module.nx, module.nf)
        elif isinstance(module, nn.Embedding):
            yield name, module, (module.num_embeddings, module.embedding_dim)


def adapted_layers(model: Any, targets: str | tuple[str, ...]) -> str | list[str]:
    """What peft is told to put adapters around: the targets, or where the model has parts that text never reaches, the
    full names of the layers that it reaches; all-linear means those of its decoder blocks then."""
    if not has_parts_beside_text(model):
        return targets if isinstance(targets, str) else list(targets)
    linear_ones = _all_linear(model)
    return [name for name, module, _ in _layers(model) if _is_target(name, module, linear_ones, targets)]


def _all_linear(model: Any) -> set[nn.Module]:
    """What all-linear means: all linear layers but the head; of a model with parts beside text, its blocks' layers."""
    inside = {module for block in blocks_of(model) for module in block.modules()}
    head, anywhere = model.get_output_embeddings(), not has_parts_beside_text(model)
    layers = (module for _, module, _ in _layers(model) if not isinstance(module, nn.Embedding))
    return {module for module in layers if module is not head and (anywhere or module in inside)}


def _is_target(name: str, module: nn.Module, linear_ones: set[nn.Module], targets: str | tuple[str, ...]) -> bool:
    """What an adapter is put around."""
    if targets == "all-linear":
        return module in linear_ones
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(_ends_in(name, target) for target in targets)


def _ends_in(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")
