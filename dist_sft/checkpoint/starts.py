"""What an adapter started from, where its start is part of the model's function (PiSSA).

It lies in every checkpoint, with its checksum in the manifest. A run that goes on takes it from there: a decomposition
made anew, on another machine, may differ, and the checkpoint's A and B would belong to another base.
"""

from pathlib import Path

from torch import Tensor

from dist_sft.checkpoint.layout import Manifest, folder_of, verify_shard, whole_steps
from dist_sft.checkpoint.shards import ShardFile
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import reading

STARTS = "adapter_starts.safetensors"


def newest_starts(checkpoints: Path) -> Path | None:
    """The newest checkpoint of a run whose start is whole; None where there is no checkpoint at all.

    Raises CheckpointError where none of the checkpoints has a start that can be trusted.
    """
    problem = ""
    for step in reversed(whole_steps(checkpoints)):
        folder = folder_of(checkpoints, step)
        try:
            manifest = Manifest.read(folder)
            name = _name(manifest)
            found = verify_shard(folder, name, manifest.shards[name]) if name else f"{STARTS} is not in the manifest"
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
    with reading(checkpoint):
        if (name := _name(Manifest.read(checkpoint))) is None:
            return None
        file = ShardFile(checkpoint / name)
        return {parameter: file.tensor(parameter) for parameter in file.names}


def _name(manifest: Manifest) -> str | None:
    """Of the file in the checkpoint."""
    return next((name for name in manifest.shards if name.endswith(STARTS)), None)
