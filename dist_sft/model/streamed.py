"""Write the weights of a model file by file, each of them small: no more than one file is in memory at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from dist_sft.model.meta import tied_names

FILE = 1 << 30
"""Bytes of one file, unless one weight alone has more."""


def save_streamed(model: Any, weight: Callable[[str], Tensor], out: Path) -> None:
    """A folder that from_pretrained loads.

    Args:
        model: without weights, on the meta device. Its config is written as it is.
        weight: of a name of its state dict, in the precision that is to be written.
    """
    names = _own_names(model)
    renamed = get_model_conversion_mapping(model, add_legacy=False)  # files name weights otherwise
    if renamed:
        missing, unexpected = model.load_state_dict({name: weight(name) for name in names}, strict=False, assign=True)
        assert not unexpected and not set(missing) - tied_names(model).keys(), (
            f"missing {missing}, unexpected {unexpected}"
        )
        model.tie_weights()
        model.save_pretrained(out)
        return
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    state = model.state_dict()
    pattern = SAFE_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors")
    plan = split_torch_state_dict_into_shards(
        {name: state[name] for name in names}, filename_pattern=pattern, max_shard_size=FILE
    )
    for file, inside in plan.filename_to_tensors.items():
        save_file({name: weight(name).contiguous() for name in inside}, out / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (out / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _own_names(model: Any) -> list[str]:
    """Of the state dict, without those that are another's weights."""
    ignored = tied_names(model).keys() | set(model._keys_to_ignore_on_save or ())
    return [name for name in model.state_dict() if name not in ignored]
