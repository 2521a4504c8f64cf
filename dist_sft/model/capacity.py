"""How many parameters a kind of tuning trains, from the architecture alone: no weights are read.

Layout, model.tuning -> Trained
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dist_sft.config.sections import FullTuning, LoraTuning
from dist_sft.core.errors import ModelError
from dist_sft.model.layout import Layer, Layout


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


def count_trained(layout: Layout, tuning: FullTuning | LoraTuning) -> Trained:
    """Exact. Raises ModelError."""
    base, frozen = layout.size, sum(layout.parameters[name] for name in layout.beside)
    if isinstance(tuning, FullTuning):
        return Trained(base, 0, 0, 0, base - frozen, 1.0, frozen)
    refuse_absent_targets(layout.layers, tuning)
    whole = {layout.same.get(name, name) for name in (*layout.parameters, *layout.same) if _is_saved(name, tuning)}
    per_rank = norms = covered = linear = 0
    for layer in layout.layers:
        inside = _is_saved(f"{layer.name}.weight", tuning)
        adapted = not inside and _is_target(layer, tuning.targets)
        if adapted:
            per_rank += layer.into + layer.out
            norms += layer.out if tuning.dora else 0
        if not layer.head and layer.kind != "embedding":
            linear += layer.into * layer.out
            covered += layer.into * layer.out * (adapted or inside)
    trained_whole = sum(layout.parameters[name] for name in whole - layout.beside)
    return Trained(base, per_rank, tuning.rank, norms, trained_whole, covered / max(linear, 1), frozen)


def refuse_absent_targets(layers: Iterable[Layer], tuning: LoraTuning) -> None:
    """Raise ModelError where a target of the adapter is no layer of the model: peft would leave it out in silence."""
    layers = list(layers)
    for target in (tuning.targets,) if isinstance(tuning.targets, str) else tuning.targets:
        wanted = target if isinstance(tuning.targets, str) else (target,)
        if not any(_is_target(layer, wanted) for layer in layers):
            known = sorted({layer.name.rpartition(".")[2] for layer in layers})
            raise ModelError(
                f"LoRA cannot be put there: the model has no layer {target}",
                where="model.tuning.targets",
                fix=f"use all-linear, or some of: {', '.join(known)}",
            )


def tensor_sizes(layout: Layout, tuning: FullTuning | LoraTuning) -> tuple[list[int], list[int]]:
    """Numbers in each tensor of the model, and in each that adapters add (A, B, and the norms of DoRA)."""
    base, added = [*layout.parameters.values()], list[int]()
    if isinstance(tuning, FullTuning):
        return base, []
    for layer in adapted_layers(layout.layers, tuning.targets):
        added += [layer.into * tuning.rank, layer.out * tuning.rank, *([layer.out] if tuning.dora else [])]
    return base, added


def adapted_layers(layers: Iterable[Layer], targets: str | tuple[str, ...]) -> list[Layer]:
    """Those that an adapter is put around."""
    return [layer for layer in layers if _is_target(layer, targets)]


def _is_saved(parameter: str, tuning: LoraTuning) -> bool:
    """Whether a parameter is in a module that is trained in full."""
    return any(_ends_in(module, end) for module in _modules(parameter) for end in tuning.modules_to_save)


def _modules(parameter: str) -> Iterator[str]:
    """Names of the modules that a parameter is in, from the innermost."""
    while "." in parameter:
        parameter = parameter.rpartition(".")[0]
        yield parameter


def _is_target(layer: Layer, targets: str | tuple[str, ...]) -> bool:
    """Whether an adapter is put around it."""
    if targets == "all-linear":
        return layer.usual
    if isinstance(targets, str):
        return re.fullmatch(targets, layer.name) is not None
    return any(_ends_in(layer.name, target) for target in targets)


def _ends_in(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")
