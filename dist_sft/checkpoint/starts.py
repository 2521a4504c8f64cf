"""What an adapter started from, where its start is part of the model's function (PiSSA).

It lies in every checkpoint, with its checksum in the manifest. A run that goes on takes it from there: a decomposition
made anew, on another machine, may differ, and the checkpoint's A and B would belong to another base.
"""

from pathlib import Path

import torch
from torch import Tensor

from dist_sft.checkpoint.layout import SHARDS, Manifest, folder_of, verify_shard, whole_steps
from dist_sft.core.errors import CheckpointError

STARTS = "adapter_starts.pt"


def newest_starts(checkpoints: Path) -> Path | None:
    """The newest checkpoint of a run whose start is whole; None where there is no checkpoint at all.

    Raises CheckpointError where none of the checkpoints has a start that can be trusted.
    """
    problem = ""
    for step in reversed(whole_steps(checkpoints)):
        folder, name = folder_of(checkpoints, step), f"{SHARDS}/{STARTS}"
        try:
            shard = Manifest.read(folder).shards.get(name)
            found = verify_shard(folder, name, shard) if shard else f"{name} is not in the manifest"
        except CheckpointError as error:
            found = error.what
        if found is None:
            return folder
        problem = problem or f"{folder.name}: {found}"
    if problem:
        raise CheckpointError(
            f"no checkpoint tells what the adapter started from; {problem}",
            where=str(checkpoints),
            fix="bring one back from a copy, or remove them to begin again from the base model",
        )
    return None


def starts_in(checkpoint: Path) -> dict[str, Tensor] | None:
    """A0 and B0 by parameter name, on the CPU; None for a checkpoint without."""
    path = checkpoint / SHARDS / STARTS
    if not path.is_file():
        return None
    starts: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return starts
