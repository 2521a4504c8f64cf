"""Low-rank adapters (peft) around a base model that stays as it is.

model -> the same function, with few parameters that are trained; the same numbers on every rank

W x  ->  W x + scale * B A x                             B starts at 0
W x  ->  W x + scale * (B A x - B0 A0 x)                 PiSSA; A and B start at A0 and B0, which `principal` finds
W x  ->  m / |V| * V x, |V| by output, V as above        DoRA; m starts at |W|
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_sft.config.sections import LoraTuning
from dist_sft.core import seeds
from dist_sft.core.errors import ModelError
from dist_sft.model.capacity import adapted_layers, refuse_absent_targets
from dist_sft.model.meta import layers_of
from dist_sft.model.text_path import has_parts_beside_text, is_beside_text

NAME = "default"
"""What peft calls an adapter that nobody named."""


def with_adapters(model: Any, tuning: LoraTuning, seed: int, starts: dict[str, Tensor] | None = None) -> Any:
    """A peft model that starts the same on every rank and in every world. A collective under ZeRO-3, and with PiSSA.

    starts: A0 and B0 of an earlier start of the run, see `starts_of`; none: they are found anew. Raises ModelError.
    """
    from peft import get_peft_model
    from peft.tuners.lora import LoraLayer

    refuse_absent_targets(layers_of(model), tuning)
    tied = is_tied(model)
    torch.manual_seed(seeds.key(seed, "lora") % 2**63)
    try:
        adapted = get_peft_model(model, _peft_config(model, tuning), autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(
            f"LoRA cannot be put there: {str(error).strip().splitlines()[0]}",
            where=f"model.tuning.targets={tuning.targets}",
            fix="use all-linear",
        ) from error
    if tuning.dropout and isinstance(adapted.get_output_embeddings(), LoraLayer):
        raise ModelError(  # the head runs on supervised positions only, unknown to dropout
            "an adapter on the head cannot have dropout",
            where="model.tuning.dropout",
            fix="set model.tuning.dropout=0, or leave the head out of model.tuning.targets",
        )
    if tied and not is_tied(adapted):  # two copies would be trained, and a merged model has but one (peft issue 2777)
        raise ModelError(
            "its head is its embedding, and peft cannot train them as one",
            where="model.tuning.modules_to_save",
            fix="leave both out, or train all weights: model.tuning.kind=full",
        )
    _refuse_zero_norms(adapted)
    if tuning.init == "pissa":
        _start_at_principal(adapted, tuning, starts)
    empty = [name for name, p in adapted.named_parameters() if p.requires_grad and p.numel() == 0]
    assert not empty, f"made from weights that were not gathered: {empty[:4]}"
    return adapted


def _refuse_zero_norms(model: nn.Module) -> None:
    for name, norms in model.named_parameters():
        if "lora_magnitude_vector" in name and not norms.is_meta and not norms.all():
            layer = name.partition(".lora_magnitude_vector")[0].removeprefix("base_model.model.")
            raise ModelError(
                f"DoRA divides by each output's norm, and {int((norms == 0).sum())} outputs of {layer} have only zeros",
                where="model.tuning.dora",
                fix=f"leave {layer.rpartition('.')[2]} out of model.tuning.targets, or set model.tuning.dora=false",
            )


def trained_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter that is trained, under each of its names; of a model that is not partitioned."""
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}


def _peft_config(model: Any, tuning: LoraTuning) -> Any:
    from peft import LoraConfig

    whole = _saved_modules(model, tuning.modules_to_save)
    return LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,  # type: ignore[arg-type]  # peft only divides it by r
        lora_dropout=tuning.dropout,
        use_rslora=tuning.scaling == "rslora",
        use_dora=tuning.dora,
        target_modules=_targets(model, tuning.targets),
        modules_to_save=whole or None,
        ensure_weight_tying=is_tied(model) and _ends(model, whole),
        task_type="CAUSAL_LM",
    )


def _targets(model: Any, targets: str | tuple[str, ...]) -> str | list[str]:
    """What peft is told: the targets; of a model with parts that text never reaches, full names of layers, for their
    last parts may be those of layers there."""
    if not has_parts_beside_text(model):
        return targets if isinstance(targets, str) else list(targets)
    return [layer.name for layer in adapted_layers(layers_of(model), targets)]


def is_tied(model: Any) -> bool:
    """Whether the head's weight is the embedding's."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _ends(model: Any, names: list[str]) -> bool:
    """Whether the embedding or the head is among these modules."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return any(name in names for name, module in model.named_modules() if any(module is end for end in ends))


def _saved_modules(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Full names of modules: to peft, norm would also mean input_layernorm. Raises ModelError for an unknown name."""
    reached = [(name, module) for name, module in model.named_modules() if not is_beside_text(module)]
    there = [name for name, module in reached if any(True for _ in module.parameters(recurse=False))]
    for name in names:
        if not any(_means(name, one) for one in there):
            raise ModelError(
                f"the model has no module {name} with weights of its own",
                where="model.tuning.modules_to_save",
                fix=f"use some of: {', '.join(sorted({one.rpartition('.')[2] for one in there}))}",
            )
    return [one for one in there if any(_means(name, one) for name in names)]


def _means(name: str, module: str) -> bool:
    """Whether a setting's name, e.g. lm_head, is the end of a module's full name."""
    return f".{module}".endswith(f".{name}")


class _Started(nn.Module):
    """A matrix that is trained, and the one that it started from. In the place of a linear layer of peft's."""

    start: Tensor

    def __init__(self, weight: nn.Parameter, start: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("start", start, persistent=False)  # else each rank would save it


class _StartedA(_Started):
    """x [..., in] -> A x and A0 x, [..., rank] each."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.linear(x, self.weight), nn.functional.linear(x, self.start)


class _StartedB(_Started):
    """A x and A0 x -> B A x - B0 A0 x, [..., out]: nothing before the first update."""

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        now, then = both
        return nn.functional.linear(now, self.weight) - nn.functional.linear(then, self.start)


def starts_of(model: nn.Module) -> dict[str, Tensor]:
    """A0 and B0 by the names of A and B; empty without PiSSA. The frozen part of the model's function is made of them.

    A decomposition differs between machines, so a run keeps its own.
    """
    return {f"{name}.weight": m.start for name, m in model.named_modules() if isinstance(m, _Started)}


def _start_at_principal(model: nn.Module, tuning: LoraTuning, starts: dict[str, Tensor] | None) -> None:
    """PiSSA (Meng et al., 2024), whose base is W - scale * B0 A0, without a change of W: that part is computed apart.

    So no rounding of W is lost, the base stays what is on disk, and B A - B0 A0 is an adapter of twice the rank.
    """
    from peft.tuners.lora import Linear, LoraLayer

    layers: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        if not isinstance(layer, Linear):
            raise ModelError(
                f"PiSSA is for linear layers, and {name} is none",
                where="model.tuning.targets",
                fix="leave it out, name it in model.tuning.modules_to_save, or set model.tuning.init=default",
            )
        most = min(layer.in_features or 0, layer.out_features or 0)
        if tuning.rank > most:
            raise ModelError(
                f"{name} is {layer.out_features} x {layer.in_features}, and has no {tuning.rank} principal components",
                where="model.tuning.rank",
                fix=f"set model.tuning.rank to at most {most}",
            )
    found = _kept(layers, starts) if starts is not None else _principal_parts(layers, tuning)
    for layer, (start_a, start_b) in zip(layers.values(), found, strict=True):
        layer.lora_A[NAME] = _StartedA(*_at_start(layer.lora_A[NAME].weight, start_a))
        layer.lora_B[NAME] = _StartedB(*_at_start(layer.lora_B[NAME].weight, start_b))


def _at_start(weight: nn.Parameter, start: Tensor) -> tuple[nn.Parameter, Tensor]:
    """A parameter put where it starts, and that place, with its device and precision."""
    start = start.to(weight.device, weight.dtype, copy=True)
    weight.data.copy_(start)
    return weight, start


def _kept(layers: dict[str, Any], starts: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    names = {f"{name}.{factor}.{NAME}.weight" for name in layers for factor in ("lora_A", "lora_B")}
    assert names == set(starts), f"kept for another model: {sorted(names ^ set(starts))[:4]}"
    for name in layers:
        yield starts[f"{name}.lora_A.{NAME}.weight"], starts[f"{name}.lora_B.{NAME}.weight"]


def _principal_parts(layers: dict[str, Any], tuning: LoraTuning) -> Iterator[tuple[Tensor, Tensor]]:
    """A0 [rank, in] and B0 [out, rank] of each layer. Ranks decompose different layers and tell each other."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    queue = list(layers.values())
    for first in range(0, len(queue), world):
        group = queue[first : first + world]
        parts = [
            (torch.empty_like(one.lora_A[NAME].weight), torch.empty_like(one.lora_B[NAME].weight)) for one in group
        ]
        own: Tensor | None = None
        for owner, layer in enumerate(group):
            weight = layer.get_base_layer().weight
            with _gathered(weight):
                if owner == rank:
                    own = weight.detach().to(torch.float32, copy=True)
                    own = own.T if layer.fan_in_fan_out else own
        if own is not None:
            for part, value in zip(parts[rank], principal(own, tuning.rank, tuning.scale), strict=True):
                part.copy_(value)
        for owner, (start_a, start_b) in enumerate(parts):
            for part in (start_a, start_b) if world > 1 else ():
                dist.broadcast(part, owner)
            yield start_a, start_b


def principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank], for which scale * B A is the best approximation of a weight [out, in]."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def _gathered(weight: nn.Parameter) -> contextlib.AbstractContextManager[None]:
    """The whole of a weight for a while, where ZeRO-3 has partitioned it."""
    if not hasattr(weight, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    gathered: contextlib.AbstractContextManager[None] = deepspeed.zero.GatheredParameters([weight])
    return gathered
