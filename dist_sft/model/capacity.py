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
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from dist_sft.config.sections import FullTuning, LoraTuning
from dist_sft.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Trained:
    """Counts of parameters.

    base      of the model
    per_rank  that each rank of the adapter adds
    rank      of the adapter; 0 in full tuning
    norms     of DoRA
    whole     of modules that are trained in full: all, in full tuning
    covered   share of the linear layers' parameters, without the head, that have an adapter or are trained in full
    """

    base: int
    per_rank: int
    rank: int
    norms: int
    whole: int
    covered: float

    @property
    def total(self) -> int:
        return self.per_rank * self.rank + self.norms + self.whole


def laid_out(config: PretrainedConfig, dtype: torch.dtype | None = None) -> Any:
    """The model without weights: on the meta device. The config stays as it is, which transformers would write into."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype or config.dtype)


def count_parameters(config: PretrainedConfig) -> int:
    """Of the architecture."""
    return sum(parameter.numel() for parameter in laid_out(config).parameters())


def count_trained(config: PretrainedConfig, tuning: FullTuning | LoraTuning) -> Trained:
    """Exact, for the layers are laid out as the model lays them out, on the meta device. Raises ModelError."""
    model = laid_out(config)
    base = sum(p.numel() for p in model.parameters())
    if isinstance(tuning, FullTuning):
        return Trained(base, 0, 0, 0, base, 1.0)
    refuse_absent_targets(model, tuning)
    head = model.get_output_embeddings()
    saved = [name for name, _ in model.named_modules() if any(_ends_in(name, end) for end in tuning.modules_to_save)]
    whole = {id(p): p.numel() for name in saved for p in model.get_submodule(name).parameters()}
    per_rank = norms = covered = linear = 0
    for name, module, sizes in _layers(model):
        inside = any(name == one or name.startswith(f"{one}.") for one in saved)
        adapted = not inside and _is_target(name, module, module is head, tuning.targets)
        if adapted:
            per_rank += sum(sizes)
            norms += sizes[1] if tuning.dora else 0
        if module is not head and not isinstance(module, nn.Embedding):
            linear += sizes[0] * sizes[1]
            covered += sizes[0] * sizes[1] * (adapted or inside)
    return Trained(base, per_rank, tuning.rank, norms, sum(whole.values()), covered / max(linear, 1))


def refuse_absent_targets(model: Any, tuning: LoraTuning) -> None:
    """Raise ModelError where a target of the adapter is no layer of the model: peft would leave it out in silence."""
    head, layers = model.get_output_embeddings(), list(_layers(model))
    for target in (tuning.targets,) if isinstance(tuning.targets, str) else tuning.targets:
        wanted = target if isinstance(tuning.targets, str) else (target,)
        if not any(_is_target(name, module, module is head, wanted) for name, module, _ in layers):
            known = sorted({name.rpartition(".")[2] for name, _, _ in layers})
            raise ModelError(
                f"LoRA cannot be put there: the model has no layer {target}",
                where="model.tuning.targets",
                fix=f"use all-linear, or some of: {', '.join(known)}",
            )


def tensor_sizes(config: PretrainedConfig, tuning: FullTuning | LoraTuning) -> tuple[list[int], list[int]]:
    """Numbers in each tensor of the model, and in each that adapters add (A, B, and the norms of DoRA)."""
    model = laid_out(config)
    base = [p.numel() for p in model.parameters()]
    if isinstance(tuning, FullTuning):
        return base, []
    head, added = model.get_output_embeddings(), list[int]()
    for name, module, (into, out) in _layers(model):
        if _is_target(name, module, module is head, tuning.targets):
            added += [into * tuning.rank, out * tuning.rank, *([out] if tuning.dora else [])]
    return base, added


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[int, int]]]:
    """Layers that can have an adapter, with the sizes of what goes in and of what comes out."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module, (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            yield name, module, (module.nx, module.nf)
        elif isinstance(module, nn.Embedding):
            yield name, module, (module.num_embeddings, module.embedding_dim)


def _is_target(name: str, module: nn.Module, is_head: bool, targets: str | tuple[str, ...]) -> bool:
    """What peft would put an adapter around."""
    if targets == "all-linear":
        return not is_head and not isinstance(module, nn.Embedding)
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(_ends_in(name, target) for target in targets)


def _ends_in(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")
