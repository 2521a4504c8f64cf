"""The weights of a model on disk, one at a time."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from dist_sft.config.sections import ModelSection
from dist_sft.core.errors import ModelError
from dist_sft.model.configuration import auto_class
from dist_sft.model.meta import laid_out, tied_names


def stored_weights(settings: ModelSection, model: Any) -> Callable[[str], Tensor]:
    """A function: name in the state dict of a model (which may be on the meta device) -> its weight, as settings.dtype.

    Each is read from its safetensors file when it is asked for, and is the caller's own. Where files are of another
    kind, or name weights otherwise than the model does, transformers loads all of them at once.
    """
    dtype, tied = getattr(torch, settings.dtype), tied_names(model)
    files = {} if get_model_conversion_mapping(model, add_legacy=False) else _files(settings)
    if all(name in files or tied.get(name) in files for name in model.state_dict()):
        return lambda name: _read(files, name if name in files else tied[name]).to(dtype)

    @functools.cache
    def loaded() -> dict[str, Tensor]:
        options: dict[str, Any] = {"revision": settings.revision, "dtype": dtype, "trust_remote_code": False}
        state: dict[str, Tensor] = auto_class(model.config).from_pretrained(settings.path, **options).state_dict()
        return state

    return lambda name: loaded()[name].clone()


def refuse_two_heads(settings: ModelSection, config: Any) -> None:
    """Raise ModelError where a config says that the head is the embedding, and the files hold two that differ.

    transformers then loads both, or, under ZeRO-3, only one: what is learned would depend on the ZeRO stage.
    """
    tied = tied_names(laid_out(config))
    files = _files(settings) if tied else {}
    for name, source in tied.items():
        if name in files and source in files and not torch.equal(_read(files, name), _read(files, source)):
            raise ModelError(
                f"its config says that {name} is {source}, and its files hold two that differ",
                where=settings.path,
                fix="set tie_word_embeddings to false in its config.json, or take the wrong one out of its files",
            )


def _files(settings: ModelSection) -> dict[str, str]:
    """The file of each weight, by the name that it has there; {} where there are no safetensors."""
    options: dict[str, Any] = {"revision": settings.revision, "_raise_exceptions_for_missing_entries": False}
    paths = [cached_file(settings.path, SAFE_WEIGHTS_NAME, **options)]
    if paths == [None] and (index := cached_file(settings.path, SAFE_WEIGHTS_INDEX_NAME, **options)):
        paths, _ = get_checkpoint_shard_files(settings.path, index, revision=settings.revision)
    found: dict[str, str] = {}
    for path in filter(None, paths):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _read(files: dict[str, str], name: str) -> Tensor:
    with safe_open(files[name], framework="pt") as file:
        return file.get_tensor(name)
