"""Put the shards of a checkpoint together again.

Needs memory for one float32 copy of what was trained, on the machine that exports; no GPU.
"""

import contextlib
import io
from pathlib import Path

import torch
from torch import Tensor

from dist_sft.checkpoint.layout import SHARDS, Manifest, verify_shard
from dist_sft.checkpoint.shards import refuse_code
from dist_sft.core.errors import CheckpointError


def consolidated(folder: Path) -> dict[str, Tensor]:
    """float32 weights by the model's own names, of everything that was trained. Raises CheckpointError."""
    manifest = Manifest.read(folder)
    for name, shard in manifest.shards.items():
        if problem := verify_shard(folder, name, shard):
            raise CheckpointError(problem, where=str(folder), fix="export another step: --step N")
        refuse_code(folder / name)
    if manifest.zero_stage == 0:
        states = torch.load(
            folder / SHARDS / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False, mmap=True
        )
        return dict(states["module"])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    silence = io.StringIO()  # it prints its progress, on both
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        weights: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(
            str(folder), tag=SHARDS, exclude_frozen_parameters=manifest.adapter
        )
    return weights
