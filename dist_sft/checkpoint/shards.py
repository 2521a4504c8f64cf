"""How DeepSpeed's shards reach the disk, and come back from it.

DeepSpeed lets its file access be replaced. Ours remembers what this rank wrote, with checksums; it keeps an error
instead of raising it in the middle of a collective, where the other ranks would wait for ever; and it reads no pickle
that could run code.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from dist_sft.checkpoint.layout import Shard
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import room, sha256

TRUSTED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Classes that a sound shard may name; any other could run code when it is loaded."""


class ShardFiles(TorchCheckpointEngine):
    """File access of one rank for one save or load.

    written  Shard by file name
    error    the first thing that went wrong, for a person; None if nothing did
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.written: dict[str, Shard] = {}
        self.error: str | None = None

    @contextlib.contextmanager
    def used_by(self, engine: Any) -> Iterator[None]:
        """Give an engine this file access for a while, and keep it from copying its conversion script."""
        usual, engine.checkpoint_engine = engine.checkpoint_engine, self
        engine._copy_recovery_script = lambda folder: None
        try:
            yield
        finally:
            engine.checkpoint_engine = usual
            del engine._copy_recovery_script

    def save(self, state_dict: Any, path: str) -> None:
        if self.error:
            return
        try:
            with Path(path).open("wb") as file:
                torch.save(state_dict, file)
                file.flush()
                os.fsync(file.fileno())
            self.written[Path(path).name] = Shard(Path(path).stat().st_size, sha256(Path(path)), self.rank)
        except (OSError, RuntimeError) as error:
            self.error = describe(error, Path(path).parent)

    def load(self, path: str, map_location: Any = None) -> Any:
        refuse_code(Path(path))
        return torch.load(path, map_location=map_location, weights_only=False)


def describe(error: Exception, folder: Path) -> str:
    """An error of a write, and how much room there is."""
    return f"{str(error).splitlines()[0]} ({room(folder)})"


def refuse_code(path: Path) -> None:
    """Raise CheckpointError if loading this file could run code that is not DeepSpeed's own."""
    try:
        unknown = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(TRUSTED)
    except ValueError as error:
        raise CheckpointError(f"the shard cannot be read: {error}", where=str(path)) from error
    if unknown:
        raise CheckpointError(
            f"the shard names {', '.join(sorted(unknown))}, which no checkpoint of ours does",
            where=str(path),
            fix="do not load it; use a checkpoint that you know the origin of",
        )
