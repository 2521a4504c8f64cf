"""Is every weight that a model needs in its files, and is every weight in its files one that the model has?

transformers fills what is missing with random numbers and leaves out what it does not know, and only warns.

config.json ─> Layout (kept in the cache) ─┐
weight files ─> Headers ───────────────────┴─> equal, or compared by transformers' own loader on the meta device
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model.architecture import Architecture
from dist_sft.model.headers import AGAIN, Headers, Stored, read_headers, unpickled
from dist_sft.model.layout import Layout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FLOATS = {"F64", "F32", "F16", "BF16"}
NAMED = 3
"""Names in an error; of all others their number."""
FORMER = r"(^|\.)(masked_bias|inv_freq|cos_cached|sin_cached|position_ids)$"
"""Tables that earlier versions of transformers stored, each computed from config.json."""
PREDICTORS = r"(^|\.)mtp(_layers|_block)?\."
"""Layers that predict several tokens at once (DeepSeek-AI, 2024), which transformers does not run."""


@dataclass(frozen=True)
class Comparison:
    """Names of weights.

    missing  that the model needs and the files do not hold
    left     that the files hold and the model does not
    wrong    with the shape or the type in the files, and the shape in the model
    unused   that the files hold, and that no model of transformers would use: rotary tables, multi-token prediction
    """

    missing: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    wrong: tuple[tuple[str, str, str], ...] = ()
    unused: tuple[str, ...] = ()

    def refuse(self, where: str) -> None:
        """Raise ModelError for weights that would be invented, left out, or read as something else."""
        if self.missing:
            raise ModelError(
                f"{_counted(self.missing)} missing in its files, and would be random: {_named(self.missing)}",
                where=where,
                fix=f"{AGAIN}, or save it whole; where its head is its embedding, config.json says so by "
                '"tie_word_embeddings": true',
            )
        if self.wrong:
            name, found, needed = self.wrong[0]
            raise ModelError(
                f"{_counted(self.wrong)} not what config.json describes: {name} is {found} in its files, and {needed} "
                "in the model",
                where=where,
                fix="put the config.json beside it that belongs to these weights",
            )
        if self.left:
            raise ModelError(
                f"{_counted(self.left)} in its files for which config.json has no place: {_named(self.left)}",
                where=where,
                fix="put the config.json beside it that belongs to these weights (e.g. num_hidden_layers, biases), or "
                "take out of its files what belongs to another model",
            )

    def notes(self) -> tuple[str, ...]:
        """What a user should see of a model that passes."""
        if not self.unused:
            return ()
        return (f"{_counted(self.unused)} in the model's files and not used by transformers: {_named(self.unused)}",)


def refuse_incomplete(settings: ModelSection, architecture: Architecture) -> tuple[str, ...]:
    """Compare the files of a model with its architecture; reads no weights. Raises ModelError; returns notes."""
    headers = read_headers(settings)
    if headers is None:
        return ("the weights are not here yet: their names and shapes are compared when they are loaded",)
    comparison = compare(architecture, headers)
    comparison.refuse(settings.path)
    return comparison.notes()


def compare(architecture: Architecture, headers: Headers) -> Comparison:
    """torch is imported only where this content of config.json, or these headers, were never seen."""
    if headers.tensors is not None and _equal(architecture.layout, headers.tensors):
        return Comparison()
    found = architecture.remembered("weights", lambda config: vars(_compared(config, headers)), headers.digest)
    return Comparison(
        tuple(found["missing"]), tuple(found["left"]), tuple(map(tuple, found["wrong"])), tuple(found["unused"])
    )


def _equal(layout: Layout, tensors: dict[str, Stored]) -> bool:
    """Whether files hold what a model needs, name by name, and nothing else."""
    shapes, tied = layout.shapes, layout.tied
    held = tensors.keys()
    return (
        not layout.converted
        and held <= shapes.keys()
        and all(name in tied and tied[name] in held for name in shapes.keys() - held)
        and all(list(one.shape) == shapes[name] and one.dtype in FLOATS for name, one in tensors.items())
    )


def _compared(config: "PretrainedConfig", headers: Headers) -> Comparison:
    """transformers' own loading, of tensors without content."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils import logging

    from dist_sft.model.meta import laid_out

    model = laid_out(config)
    if headers.tensors is None:
        state = {name: tensor for name, tensor in unpickled(headers.pickled) if isinstance(tensor, torch.Tensor)}
        integers = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    else:
        state = {name: torch.empty(one.shape, device="meta") for name, one in headers.tensors.items()}
        integers = [name for name, one in headers.tensors.items() if one.dtype not in FLOATS]
    loading = LoadStateDictConfig(
        device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(model), ignore_mismatched_sizes=True
    )
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        info, _ = type(model)._load_pretrained_model(model, state, None, loading)
    finally:
        if bars:
            logging.enable_progress_bar()
    info.missing_keys |= info.conversion_errors.keys()
    before = set(info.unexpected_keys)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    unused = {name for name in info.unexpected_keys if _is_unused(name, model)}
    floats = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    types = {} if headers.tensors is None else {name: one.dtype for name, one in headers.tensors.items()}
    wrong = [(name, f"{list(found)}", f"{list(needed)}") for name, found, needed in info.mismatched_keys]
    wrong += [
        (name, types.get(name, "integers"), "floating point") for name in integers if _names(name, model) & floats
    ]
    return Comparison(
        missing=tuple(sorted(info.missing_keys)),
        left=tuple(sorted(info.unexpected_keys - unused)),
        wrong=tuple(sorted(wrong)),
        unused=tuple(sorted((before - info.unexpected_keys) | unused)),
    )


def _names(name: str, model: Any) -> set[str]:
    """Of a weight, with the prefix of the model below the head, and without."""
    short = name.removeprefix(f"{model.base_model_prefix}.")
    return {short, f"{model.base_model_prefix}.{short}"}


def _is_unused(name: str, model: Any) -> bool:
    """Whether a weight that the model has no place for is none that it should have: a buffer that it computes, or a
    layer behind its last that predicts several tokens at once."""
    if re.search(FORMER, name) or re.search(PREDICTORS, name):
        return True
    if _names(name, model) & {buffer for buffer, _ in model.named_buffers()}:
        return True
    text = model.config.get_text_config()
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    extra = getattr(text, "num_nextn_predict_layers", None) or 0
    return bool(layer and text.num_hidden_layers <= int(layer[1]) < text.num_hidden_layers + extra)


def of_report(report: dict[str, Any], model: Any) -> Comparison:
    """What transformers reports after it has loaded weights (`output_loading_info`)."""
    unused = {name for name in report["unexpected_keys"] if _is_unused(name, model)}
    return Comparison(
        tuple(sorted(report["missing_keys"])),
        tuple(sorted(set(report["unexpected_keys"]) - unused)),
        tuple(sorted((name, f"{list(found)}", f"{list(needed)}") for name, found, needed in report["mismatched_keys"])),
    )


def _counted(names: Iterable[Any]) -> str:
    count = len(tuple(names))
    return "1 weight is" if count == 1 else f"{count} weights are"


def _named(names: tuple[str, ...]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
